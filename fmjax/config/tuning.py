"""Released weights to train on, in a config."""

from dataclasses import dataclass
from pathlib import Path

from fmjax._checks import require, require_one_of
from fmjax.networks import LoRAConfig
from fmjax.networks.layers import DTYPES


@dataclass(frozen=True)
class PretrainedConfig:
    """A released model whose transformer is trained on.

    The sizes of the network are those of the folder, whatever the config's own say; how it is
    computed (dtype, remat, attention) is the config's.

    Attributes:
        folder: Of diffusers: a whole pipeline, or a transformer alone.
        lora: Train adapters alone; None trains all weights.
        dtype: Of the weights that adapters are of, which stay as they are. What is trained is
            float32.
    """

    folder: str
    lora: LoRAConfig | None = None
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        require(bool(self.folder), "pretrained.folder", "be a folder", repr(self.folder))
        require_one_of("pretrained.dtype", self.dtype, DTYPES)

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder).expanduser()
