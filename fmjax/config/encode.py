"""Config of the encoding of images and captions."""

from dataclasses import dataclass

from fmjax._checks import require_at_least, require_numbers, require_one_of
from fmjax.networks.layers.linear import DTYPES
from fmjax.sharding import MeshConfig


@dataclass(frozen=True)
class EncodeConfig:
    """Settings of encoding images with captions.

    Attributes:
        size: Side of the squares that images are cropped to, in pixels.
        test_every: About one in `test_every` images is a test image.
        max_tokens: Maximum number of tokens per caption of the largest text encoder; None uses the
            default of the model.
        batch_size: Number of images per batch.
        examples_per_shard: Number of examples per file.
        dtype: Data type of the text encoders and the files, "float32" or "bfloat16".
        mesh: Mesh of devices. By default, devices encode different images.
    """

    size: int = 1024
    test_every: int = 20
    max_tokens: int | None = None
    batch_size: int = 8
    examples_per_shard: int = 256
    dtype: str = "bfloat16"
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        require_numbers(self)
        for name in ("size", "batch_size", "examples_per_shard"):
            require_at_least(name, getattr(self, name), 1)
        require_at_least("test_every", self.test_every, 2)
        require_one_of("dtype", self.dtype, DTYPES)
