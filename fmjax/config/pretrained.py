"""Released weights to train on, in a config."""

from dataclasses import dataclass
from pathlib import Path

from fmjax._checks import require, require_one_of
from fmjax.networks import LoRAConfig
from fmjax.networks.layers.linear import DTYPES


@dataclass(frozen=True)
class PretrainedConfig:
    """A released model whose transformer is trained on.

    The sizes of the network are those of the folder, whatever the config's own say; how it is
    computed (dtype, remat, attention) is the config's.

    Attributes:
        folder: Of diffusers: a whole pipeline, or a transformer alone.
        lora: Train adapters alone; None trains all weights.
        weights: Start from its weights. False takes only its sizes and its table of positions, and
            starts anew: what is trained is exported and generates as a released model does. Its
            files must be there all the same: the export is in their names and types.
        dtype: Of the weights that adapters are of, which stay as they are. What is trained is
            float32.
    """

    folder: str
    lora: LoRAConfig | None = None
    weights: bool = True
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        require(bool(self.folder), "pretrained.folder", "be a folder", repr(self.folder))
        of_weights = self.weights or self.lora is None
        require(of_weights, "pretrained.weights", "be True for adapters", self.weights)
        require_one_of("pretrained.dtype", self.dtype, DTYPES)

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder).expanduser()
