"""How pictures are made of prompts with a released model."""

import math
from dataclasses import dataclass
from pathlib import Path

from fmjax._checks import (
    MAX_SIDE,
    MAX_STEPS,
    require,
    require_at_least,
    require_between,
    require_numbers,
    require_one_of,
    require_positive,
)
from fmjax.config.solvers import DIFFUSION_SAMPLERS, FLOW_MAP, SOLVERS, can_adapt
from fmjax.sharding import MeshConfig

PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class GenerateConfig:
    """How pictures are made of prompts with a released model.

    Attributes:
        height: Of a picture, in pixels; None takes the size that the model was made for.
        width: The same.
        num_images: Pictures of each prompt.
        solver: Name of a solver of the ODE or the SDE, lower case: euler, heun, tsit5, dopri5, ...
        steps: Fixed steps on the model's own grid, shifted as it was trained. None takes the usual
            number with euler, and with solvers that estimate their error adapts the steps.
        rtol: Relative tolerance of adaptive steps.
        atol: Absolute tolerance of adaptive steps.
        guidance: Scale of classifier-free guidance, of which 1 or less is none, or of the guidance
            that a model takes as an input; None takes the usual one. Models without guidance
            (schnell) take 0 or 1, which have no effect.
        negative: What pictures are guided away from; None is the empty prompt.
        seed: Of the noise.
        batch_size: Pictures at once.
        lora: A LoRA file or a folder with one, made here or elsewhere; it is added to the weights.
        lora_scale: How much of them.
        max_tokens: Of a prompt, that the largest text encoder sees; None takes the usual number.
        dtype: Of weights and computation: float32, bfloat16, or auto, which is bfloat16 but for
            the CPU. The autoencoder is float32 in any case.
        tile: Side in pixels of the tiles that pictures larger than that are decoded in; it bounds
            the memory of the decoder.
        mesh: The layout of the devices. By default all work on each picture.
    """

    height: int | None = None
    width: int | None = None
    num_images: int = 1
    solver: str = "euler"
    steps: int | None = None
    rtol: float = 1e-3
    atol: float = 1e-3
    guidance: float | None = None
    negative: str | None = None
    seed: int = 0
    batch_size: int = 1
    lora: Path | None = None
    lora_scale: float = 1.0
    max_tokens: int | None = None
    dtype: str = "auto"
    tile: int = 1024
    mesh: MeshConfig = MeshConfig(1, 1, -1)

    def __post_init__(self) -> None:
        require_numbers(self)
        limits = {"height": MAX_SIDE, "width": MAX_SIDE, "steps": MAX_STEPS, "max_tokens": 4_096}
        for name, high in limits.items():
            if getattr(self, name) is not None:
                require_between(name, getattr(self, name), 1, high)
        for name in ("num_images", "batch_size", "tile"):
            require_at_least(name, getattr(self, name), 1)
        require_at_least("seed", self.seed, 0)
        known = [name for name in SOLVERS if name not in DIFFUSION_SAMPLERS and name != FLOW_MAP]
        require_one_of("solver", self.solver, known)
        if self.steps is None:
            rule = f"be given for {self.solver}, which estimates no error"
            require(self.solver == "euler" or can_adapt(self.solver), "steps", rule, None)
        for name in ("rtol", "atol"):
            require_positive(name, getattr(self, name))
        if self.guidance is not None:
            require_at_least("guidance", self.guidance, 0.0)
        require(math.isfinite(self.lora_scale), "lora_scale", "be finite", self.lora_scale)
        require_one_of("dtype", self.dtype, PRECISIONS)
