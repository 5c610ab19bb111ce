"""Pictures of prompts with a released model: encode, solve, decode, each with its own weights."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._arrays import Text
from fmjax._checks import require, require_at_least
from fmjax._files import read_npz
from fmjax._memory import require_host_memory
from fmjax._progress import COMPILING, Progress, Silent
from fmjax.config import Experiment, SamplingConfig, make_solve
from fmjax.config.generate import GenerateConfig
from fmjax.jobs.released.request import (
    GenerationRequest,
    guidance_scale,
    products_of,
    validate_request,
)
from fmjax.networks import decode_tiled
from fmjax.paths import AffinePath, Prediction
from fmjax.pretrained.components import Loaded
from fmjax.pretrained.folder import FLUX, ModelFolder
from fmjax.pretrained.pipeline import (
    load_transformer,
    read_latents,
    velocity_net,
)
from fmjax.pretrained.prompts import PromptEncoding, encode_prompts
from fmjax.pretrained.validate import validate_model
from fmjax.runs.sampling.batches import even_batches, make_draw
from fmjax.runs.sampling.solve_progress import SolveProgress
from fmjax.sharding import batch_sharding


class Pictures(NamedTuple):
    """What became of prompts.

    Attributes:
        prompts: Of each picture.
        images: `[num, height, width, channel]` in [-1, 1].
        latents: Which they were decoded from, `[num, height, width, channel]`.
        nfe: Network evaluations of each.
        succeeded: Whether each solve arrived.
    """

    prompts: tuple[str, ...]
    images: np.ndarray
    latents: np.ndarray
    nfe: np.ndarray
    succeeded: np.ndarray


def generate(
    model: ModelFolder,
    prompts: Sequence[str],
    config: GenerateConfig = GenerateConfig(),  # noqa: B008 (frozen)
    *,
    latents: Path | None = None,
    on_image: Callable[[int, np.ndarray], None] = lambda number, image: None,
    progress: Progress = Silent(),
) -> Pictures:
    """Make pictures: `config.num_images` of each prompt, one prompt after the other.

    Text encoders, transformer and autoencoder are on the devices one at a time.

    Args:
        model: From `open_model`.
        prompts: Texts.
        config: How.
        latents: An .npz file with noise to start from, `init_latents` in diffusers' layout, one
            for each picture.
        on_image: Hears of each picture's number and pixels as soon as it is decoded.
        progress: Hears of each part.

    Raises:
        ValueError: If the model cannot do what is asked, or a part of it is missing or damaged.
    """
    request = validate_request(model, config, progress)
    require_at_least("the number of prompts", len(prompts), 1)
    height, width, _ = request.latents.event_shape
    # Pixels as bytes, and latents of 4 bytes.
    size = 3.0 * request.latents.factor**2 * height * width
    size += 4.0 * math.prod(request.latents.event_shape)
    require_host_memory("num_images", len(prompts) * config.num_images * size, "pictures")
    asked = tuple(prompt for prompt in prompts for _ in range(config.num_images))
    starts = None
    if latents is not None:
        starts = read_latents(read_npz(latents), request.latents, model.kind == FLUX)
        rule = f"hold noise for the {len(asked)} pictures"
        require(len(starts) == len(asked), "init_latents", rule, len(starts))
    validate_model(model, lora=config.lora, max_tokens=config.max_tokens)
    with products_of(request.dtype):
        cond, null = encode_request(request, prompts, progress)
        solved = _solved(request, asked, cond, null, starts, progress)
        images = decode_latents(request, solved["x1"], progress, on_image)
    return Pictures(asked, images, solved["x1"], solved["nfe"], solved["succeeded"])


def encode_request(
    request: GenerationRequest, prompts: Sequence[str], progress: Progress = Silent()
) -> tuple[Text, Text | None]:
    """The prompts' text, and that of the negative prompt, where guidance asks for it."""
    encoding = PromptEncoding(request.config.max_tokens, request.dtype)
    texts = list(prompts)
    guides = not request.distilled and (request.guidance or 0.0) > 1.0
    if guides:
        texts.append(request.config.negative or "")
    text, _ = encode_prompts(request.model, texts, encoding, mesh=request.mesh, progress=progress)
    if not guides:
        return text, None
    return jax.tree.map(lambda a: a[:-1], text), jax.tree.map(lambda a: a[-1:], text)


def released_experiment(
    request: GenerationRequest,
    loaded: Loaded,
    cond: Text,
    null: Text | None,
    watch: SolveProgress | None = None,
) -> Experiment:
    """A released transformer as an experiment that solvers take.

    Args:
        request: What is asked.
        loaded: The transformer.
        cond: The prompts' text.
        null: The negative prompt's.
        watch: Hears of the times at which the network is asked.
    """
    net = velocity_net(loaded, request.latents.event_shape, cond)
    if watch is not None:
        net = net._replace(apply=watch.over(net.apply))
    nothing: Any = None
    return Experiment(net, nothing, nothing, AffinePath(), Prediction.VELOCITY, null)


def condition(request: GenerationRequest, cond: Text, rows: np.ndarray) -> Text:
    """The text of some pictures, with the scale for models that take it as an input."""
    picked = Text(cond.tokens[rows], cond.pooled[rows])
    if not request.distilled or request.guidance is None:
        return picked
    return picked._replace(guidance=np.full(len(rows), request.guidance, np.float32))


def _solved(
    request: GenerationRequest,
    asked: tuple[str, ...],
    cond: Text,
    null: Text | None,
    starts: np.ndarray | None,
    progress: Progress,
) -> dict[str, np.ndarray]:
    """The latents of all pictures; the transformer's weights live no longer than this call."""
    config, mesh = request.config, request.mesh
    loaded = load_transformer(
        request.model,
        mesh=mesh,
        dtype=request.dtype,
        progress=progress,
        lora=config.lora,
        lora_scale=config.lora_scale,
    )
    batches = list(even_batches(len(asked), config.batch_size, mesh))
    with SolveProgress(progress, "sampling", len(batches)) as watch:
        experiment = released_experiment(request, loaded, cond, null, watch)
        sampling = SamplingConfig(
            num_samples=len(asked),
            solver=config.solver,
            num_steps=config.steps or 1,
            guidance=guidance_scale(request, null),
            seed=config.seed,
        )
        draw = make_draw(
            experiment.path,
            make_solve(experiment, sampling),
            request.steps,
            request.latents.event_shape,
            config.seed,
            mesh,
        )
        place, parts = batch_sharding(mesh), []
        for indices, kept in batches:
            rows = jax.device_put(condition(request, cond, indices // config.num_images), place)
            x0 = None if starts is None else jax.device_put(jnp.asarray(starts[indices]), place)
            solved = draw(loaded.params, jax.device_put(indices, place), rows, x0)
            named = {"x1": solved.x1, "nfe": solved.nfe, "succeeded": solved.succeeded}
            parts.append({name: np.asarray(array)[kept] for name, array in named.items()})
            watch.next()
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def decode_latents(
    request: GenerationRequest,
    latents: np.ndarray,
    progress: Progress = Silent(),
    on_image: Callable[[int, np.ndarray], None] = lambda number, image: None,
) -> np.ndarray:
    """Images of latents, one after the other; large ones in tiles."""
    loaded = request.model.load("vae", mesh=request.mesh, dtype="float32", progress=progress)
    config, vae = loaded.component.config, loaded.component.network
    tile = max(1, request.config.tile // request.latents.factor)

    @jax.jit
    def decode(params: Any, latents: jax.Array) -> jax.Array:
        with jax.sharding.use_abstract_mesh(request.mesh.abstract_mesh):
            return decode_tiled(vae.decode, params, config.unscaled(latents), tile=tile)

    height, width, _ = request.latents.event_shape
    size = height * request.latents.factor, width * request.latents.factor
    images = np.empty((len(latents), *size, config.channels_out), np.float32)
    with progress.task("decoding", len(latents)) as advance:
        advance(0, COMPILING)
        for number, one in enumerate(latents):
            images[number] = np.asarray(decode(loaded.params, one[None]))[0]
            on_image(number, images[number])
            advance()
    return images
