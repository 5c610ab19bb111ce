"""Config of image generation with a released model."""

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
    """Image size, solver, guidance and devices for generating images of prompts.

    Attributes:
        height: Height of the images in pixels; None takes the size that the model was trained for.
        width: Width of the images in pixels; None takes the size that the model was trained for.
        num_images: Number of images per prompt.
        solver: Name of a solver of the ODE or the SDE in lower case: euler, heun, tsit5, dopri5,
            ...
        num_steps: Number of fixed steps, on the shifted time grid of the model. None takes the
            default number of the model with euler, and adaptive steps with solvers that estimate
            their error.
        rtol: Relative tolerance of adaptive steps.
        atol: Absolute tolerance of adaptive steps.
        guidance: Guidance scale: of classifier-free guidance, where 1 or less is no guidance, or
            of a guidance-distilled model. None takes the default of the model. Models without
            guidance (schnell) accept 0 and 1, which have no effect.
        negative: Negative prompt of classifier-free guidance; None takes the empty prompt.
        seed: Seed of the noise.
        batch_size: Number of images generated at a time.
        lora: LoRA file, or folder with one, whose adapters are added to the weights.
        lora_scale: Factor of the LoRA adapters.
        max_tokens: Number of tokens of a prompt for the largest text encoder; None takes the
            default of the model.
        dtype: Number format of weights and computation: float32, bfloat16, or auto, which is
            float32 on CPUs and bfloat16 elsewhere. The autoencoder always uses float32.
        tile: Side in pixels of the tiles in which larger images are decoded, which limits the
            memory of the decoder.
        mesh: Layout of the devices; by default all devices work on the same image.
    """

    height: int | None = None
    width: int | None = None
    num_images: int = 1
    solver: str = "euler"
    num_steps: int | None = None
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
        limits = {
            "height": MAX_SIDE,
            "width": MAX_SIDE,
            "num_steps": MAX_STEPS,
            "max_tokens": 4_096,
        }
        for name, high in limits.items():
            if getattr(self, name) is not None:
                require_between(name, getattr(self, name), 1, high)
        for name in ("num_images", "batch_size", "tile"):
            require_at_least(name, getattr(self, name), 1)
        require_at_least("seed", self.seed, 0)
        solvers = [name for name in SOLVERS if name not in DIFFUSION_SAMPLERS and name != FLOW_MAP]
        require_one_of("solver", self.solver, solvers)
        if self.num_steps is None:
            rule = f"be given for {self.solver}, which estimates no error"
            require(self.solver == "euler" or can_adapt(self.solver), "num_steps", rule, None)
        for name in ("rtol", "atol"):
            require_positive(name, getattr(self, name))
        if self.guidance is not None:
            require_at_least("guidance", self.guidance, 0.0)
        require(math.isfinite(self.lora_scale), "lora_scale", "be finite", self.lora_scale)
        require_one_of("dtype", self.dtype, PRECISIONS)
