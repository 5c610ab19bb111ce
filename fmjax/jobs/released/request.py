"""What is asked of a released model, checked against it before any weights are read."""

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
from fmjax.pretrained.pipeline import Kind, Latents, kind_of, latents_of, released_times
from fmjax.sharding import make_mesh
from fmjax.solvers import SDE_SOLVERS, AdaptiveSteps, ErrorControl, FixedSteps


class GenerationRequest(NamedTuple):
    """What is asked of a model, checked against it before any weights are read.

    Attributes:
        model: The folder.
        config: What was asked for.
        latents: Their sizes.
        steps: Of the solver.
        guidance: Its scale; None for a model without.
        dtype: Of weights and computation.
        mesh: The devices.
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
        """Whether guidance is an input of the network."""
        return kind_of(self.model).distilled


def validate_request(
    model: ModelFolder, config: GenerateConfig, progress: Progress = Silent()
) -> GenerationRequest:
    """Raise for what a model cannot do, by its configs alone; `validate_model` looks at its files.

    Args:
        model: From `open_model`.
        config: What is requested.
        progress: Receives one line if the guidance scale has no effect.

    Raises:
        ValueError: For sizes that are no multiples of the patch times the autoencoder's factor,
            a guidance scale other than 0 and 1 of a model without guidance, a negative prompt of
            one that takes none.
    """
    kind = kind_of(model)
    latents = latents_of(model, config.height, config.width)
    if config.lora is not None:
        require_exists("lora", config.lora)
    if kind.distilled:
        rule = "be left out for FLUX, which has learned to do with one evaluation"
        require(config.negative is None, "negative", rule, repr(config.negative))
    guidance = _guidance(kind, config.guidance, progress)
    if config.negative is not None:
        assert guidance is not None
        rule = "be above 1 with a negative prompt, which else does nothing"
        require(guidance > 1.0, "guidance", rule, guidance)
    dtype = config.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    # Of an SDE every sample has steps of its own: they follow its noise.
    own = config.solver in SDE_SOLVERS
    control = ErrorControl.PER_SAMPLE if own else ErrorControl.LARGEST_SAMPLE
    steps: Steps = AdaptiveSteps(config.rtol, config.atol, control)
    if config.steps is not None or config.solver == "euler":
        steps = FixedSteps(released_times(model, latents, config.steps or kind.steps))
    return GenerationRequest(model, config, latents, steps, guidance, dtype, make_mesh(config.mesh))


def _guidance(kind: Kind, scale: float | None, progress: Progress) -> float | None:
    """The scale that pictures are guided by; None for a model without guidance.

    Of classifier-free guidance, 1 or less is none, as in diffusers: the scale is then 1.
    """
    if scale is None:
        return kind.guidance
    if kind.guidance is None:
        rule = "be 0 or 1, or left out, for a model without guidance (schnell)"
        require(scale in (0.0, 1.0), "guidance", rule, scale)
        progress.say(f"guidance {scale:g} has no effect: the model has no guidance (schnell)")
        return None
    if kind.distilled or scale >= 1.0:
        return scale
    progress.say(f"guidance {scale:g} has no effect: this model is guided by scales above 1")
    return 1.0


def guidance_scale(request: GenerationRequest, null: Text | None) -> float:
    """Of classifier-free guidance; 1 is none."""
    return 1.0 if null is None or request.guidance is None else float(request.guidance)


@contextlib.contextmanager
def products_of(dtype: str) -> Iterator[None]:
    """Products of matrices as exact as that type asks for.

    Of float32 a GPU or TPU takes less than that, unless it is told.
    """
    usual = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    with jax.default_matmul_precision("highest" if dtype == "float32" else usual):
        yield
