"""Config of finetuning: the released model that a training starts from."""

from dataclasses import dataclass
from pathlib import Path

from fmjax._checks import require, require_one_of
from fmjax.networks import LoRAConfig
from fmjax.networks.layers.linear import DTYPES


@dataclass(frozen=True)
class PretrainedConfig:
    """Released model whose transformer is finetuned.

    The sizes of the network are read from the folder and replace those of the config. Settings of
    the computation (dtype, remat, attention) are those of the config.

    Attributes:
        folder: Folder in diffusers format, of a complete pipeline or of a transformer only.
        lora: Train LoRA adapters of this rank and these layers; None trains all weights.
        weights: Start from the released weights. False takes only the sizes and the position table
            and trains new weights, which can be exported and used like a released model. The
            weight files must exist in both cases, since the export has their names and types.
        dtype: Number format of the frozen weights under adapters. Trained weights are float32.
    """

    folder: str
    lora: LoRAConfig | None = None
    weights: bool = True
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        require(bool(self.folder), "pretrained.folder", "be a folder", repr(self.folder))
        has_base = self.weights or self.lora is None
        require(has_base, "pretrained.weights", "be True for adapters", self.weights)
        require_one_of("pretrained.dtype", self.dtype, DTYPES)

    @property
    def root(self) -> Path:
        """The folder as a `Path`, with `~` expanded."""
        return Path(self.folder).expanduser()
