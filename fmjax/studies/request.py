"""What is asked of a released model, checked against it before any weights are read."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import jax

from fmjax._arrays import Text
from fmjax._checks import require
from fmjax._files import require_exists
from fmjax.config import Steps
from fmjax.config.generating import GenerateConfig
from fmjax.pretrained.folder import ModelFolder
from fmjax.pretrained.pipeline import Latents, kind_of, latents_of, released_times
from fmjax.solvers import SDE_SOLVERS, AdaptiveSteps, ErrorControl, FixedSteps
from fmjax.training import make_mesh


class Request(NamedTuple):
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


def check_request(model: ModelFolder, config: GenerateConfig) -> Request:
    """Raise for what a model cannot do, by its configs alone; `check_model` looks at its files.

    Raises:
        ValueError: For sizes that are no multiples of the patch times the autoencoder's factor,
            guidance of a model without, a negative prompt of one that takes none.
    """
    kind = kind_of(model)
    latents = latents_of(model, config.height, config.width)
    if config.lora is not None:
        require_exists("lora", config.lora)
    if kind.guidance is None:
        rule = "be left out for a model that was distilled to do without (schnell)"
        require(config.guidance is None, "guidance", rule, config.guidance)
    if kind.distilled:
        rule = "be left out for FLUX, which has learned to do with one evaluation"
        require(config.negative is None, "negative", rule, repr(config.negative))
    guidance = kind.guidance if config.guidance is None else config.guidance
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
    return Request(model, config, latents, steps, guidance, dtype, make_mesh(config.mesh))


def guidance_scale(request: Request, null: Text | None) -> float:
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
