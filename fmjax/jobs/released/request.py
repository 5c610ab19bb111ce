"""Validate a generation request against a released model before any weights are read."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import jax

from fmjax._arrays import Text
from fmjax._checks import require
from fmjax._files import require_exists
from fmjax._progress import Progress, Silent
from fmjax.config import Steps
from fmjax.config.generate import GenerateConfig
from fmjax.pretrained.folder import ModelFolder
from fmjax.pretrained.pipeline import Kind, Latents, latents_of, pipeline_kind, released_times
from fmjax.sharding import make_mesh
from fmjax.solvers import SDE_SOLVERS, AdaptiveSteps, ErrorControl, FixedSteps


class GenerationRequest(NamedTuple):
    """A validated request to generate pictures with a released model.

    Attributes:
        model: The folder of the model.
        config: The requested settings.
        latents: Sizes of the latents.
        steps: Steps of the solver.
        guidance: Guidance scale; None for a model without guidance.
        dtype: Data type of weights and computation, "float32" or "bfloat16".
        mesh: The mesh of devices.
    """

    model: ModelFolder
    config: GenerateConfig
    latents: Latents
    steps: Steps
    guidance: float | None
    dtype: str
    mesh: jax.sharding.Mesh

    @property
    def distilled(self) -> bool:
        """Whether the guidance scale is an input of the network (guidance distillation)."""
        return pipeline_kind(self.model).distilled


def validate_request(
    model: ModelFolder, config: GenerateConfig, progress: Progress = Silent()
) -> GenerationRequest:
    """Check a request against the config files of a model and resolve its defaults.

    `validate_model` checks the files of the weights.

    Args:
        model: The model, from `open_model`.
        config: The requested settings.
        progress: Receives one line if the guidance scale has no effect.

    Raises:
        ValueError: If the size is not a multiple of the patch size times the factor of the
            autoencoder, or the model does not support the guidance scale or a negative prompt.
    """
    kind = pipeline_kind(model)
    latents = latents_of(model, config.height, config.width)
    if config.lora is not None:
        require_exists("lora", config.lora)
    if kind.distilled:
        rule = "be left out for FLUX, which does not use classifier-free guidance"
        require(config.negative is None, "negative", rule, repr(config.negative))
    guidance = _guidance(kind, config.guidance, progress)
    if config.negative is not None:
        assert guidance is not None
        rule = "be above 1 with a negative prompt, which has no effect otherwise"
        require(guidance > 1.0, "guidance", rule, guidance)
    dtype = config.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    # SDE solvers adapt the steps of each sample to the noise of that sample.
    is_sde = config.solver in SDE_SOLVERS
    control = ErrorControl.PER_SAMPLE if is_sde else ErrorControl.LARGEST_SAMPLE
    steps: Steps = AdaptiveSteps(config.rtol, config.atol, control)
    if config.num_steps is not None or config.solver == "euler":
        steps = FixedSteps(released_times(model, latents, config.num_steps or kind.num_steps))
    return GenerationRequest(model, config, latents, steps, guidance, dtype, make_mesh(config.mesh))


def _guidance(kind: Kind, scale: float | None, progress: Progress) -> float | None:
    """Resolve the guidance scale; None for a model without guidance.

    As in diffusers, scales of at most 1 disable classifier-free guidance; the result is then 1.
    """
    if scale is None:
        return kind.guidance
    if kind.guidance is None:
        rule = "be 0 or 1, or left out, for a model without guidance (schnell)"
        require(scale in (0.0, 1.0), "guidance", rule, scale)
        progress.say(f"guidance {scale:g} has no effect: this model has no guidance (schnell)")
        return None
    if kind.distilled or scale >= 1.0:
        return scale
    progress.say(f"guidance {scale:g} has no effect: this model needs a scale above 1")
    return 1.0


def guidance_scale(request: GenerationRequest, null: Text | None) -> float:
    """Scale of classifier-free guidance; 1 disables it."""
    return 1.0 if null is None or request.guidance is None else float(request.guidance)


@contextlib.contextmanager
def matmul_precision(dtype: str) -> Iterator[None]:
    """Set the precision of matrix products to full float32 in the block if `dtype` is "float32".

    By default, GPUs and TPUs compute float32 products with lower precision.
    """
    default = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    with jax.default_matmul_precision("highest" if dtype == "float32" else default):
        yield
