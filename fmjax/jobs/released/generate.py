"""Generate pictures of prompts with a released model: encode, solve and decode."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from fmjax._arrays import Params, Points, Text
from fmjax._checks import require, require_at_least
from fmjax._files import read_npz
from fmjax._memory import require_host_memory
from fmjax._progress import COMPILING, Progress, Silent
from fmjax.config import Sampling, make_solve
from fmjax.config.generate import GenerateConfig
from fmjax.jobs.released.request import (
    GenerationRequest,
    guidance_scale,
    matmul_precision,
    validate_request,
)
from fmjax.networks import decode_tiled
from fmjax.pretrained.components import Loaded
from fmjax.pretrained.folder import FLUX, ModelFolder
from fmjax.pretrained.pipeline import load_transformer, read_latents, velocity_net
from fmjax.pretrained.prompts import PromptEncoding, encode_prompts
from fmjax.pretrained.validate import validate_model
from fmjax.runs.sampling.batches import make_batch_solver, seed_data
from fmjax.runs.sampling.solve_progress import SolveProgress
from fmjax.sharding import map_batched, on_mesh, padded_batch_size
from fmjax.solvers import Model


class Pictures(NamedTuple):
    """Generated pictures, with their latents and costs.

    Attributes:
        prompts: The prompt of each picture.
        images: Images in [-1, 1], `[num, height, width, channel]`.
        latents: The latents that were decoded, `[num, height, width, channel]`.
        nfe: Number of network evaluations of each picture, `[num]`.
        succeeded: Whether the solve of each picture reached t = 1, `[num]`.
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
    on_image: Callable[[int, np.ndarray], None] = lambda index, image: None,
    progress: Progress = Silent(),
) -> Pictures:
    """Generate `config.num_images` pictures of each prompt, grouped by prompt.

    Text encoders, transformer and autoencoder occupy the devices one after the other.

    Args:
        model: The model, from `open_model`.
        prompts: The prompts.
        config: Settings of the solver, the size, the guidance and the like.
        latents: An .npz file with the noise of each picture, as `init_latents` in the layout of
            diffusers; None generates noise from the seed.
        on_image: `(index, image)` is called as soon as each picture is decoded.
        progress: Receives progress reports.

    Raises:
        ValueError: If the model does not support the request, or files of it are missing or
            damaged.
    """
    request = validate_request(model, config, progress)
    require_at_least("the number of prompts", len(prompts), 1)
    height, width, _ = request.latents.event_shape
    # One byte per pixel and channel, and float32 latents.
    size = 3.0 * request.latents.factor**2 * height * width
    size += 4.0 * math.prod(request.latents.event_shape)
    require_host_memory("num_images", len(prompts) * config.num_images * size, "pictures")
    repeated = tuple(prompt for prompt in prompts for _ in range(config.num_images))
    x0 = None
    if latents is not None:
        x0 = read_latents(read_npz(latents), request.latents, model.kind == FLUX)
        rule = f"hold noise for {len(repeated)} pictures"
        require(len(x0) == len(repeated), "init_latents", rule, len(x0))
    validate_model(model, lora=config.lora, max_tokens=config.max_tokens)
    with matmul_precision(request.dtype):
        cond, null = encode_request(request, prompts, progress)
        solved = _solve(request, len(repeated), cond, null, x0, progress)
        images = decode_latents(request, solved["x1"], progress, on_image)
    return Pictures(repeated, images, solved["x1"], solved["nfe"], solved["succeeded"])


def encode_request(
    request: GenerationRequest, prompts: Sequence[str], progress: Progress = Silent()
) -> tuple[Text, Text | None]:
    """Encode prompts and, for classifier-free guidance, the negative prompt.

    Returns:
        The encoded prompts, and the encoded negative prompt, or None without classifier-free
        guidance.
    """
    encoding = PromptEncoding(request.config.max_tokens, request.dtype)
    texts = list(prompts)
    classifier_free = not request.distilled and (request.guidance or 0.0) > 1.0
    if classifier_free:
        texts.append(request.config.negative or "")
    text, _ = encode_prompts(request.model, texts, encoding, mesh=request.mesh, progress=progress)
    if not classifier_free:
        return text, None
    return jax.tree.map(lambda a: a[:-1], text), jax.tree.map(lambda a: a[-1:], text)


def released_model(
    request: GenerationRequest,
    loaded: Loaded,
    cond: Text,
    null: Text | None,
    solve_progress: SolveProgress | None = None,
) -> Model:
    """Make the `Model` of a released transformer.

    Args:
        request: The request.
        loaded: The transformer with its weights.
        cond: The encoded prompts.
        null: The encoded negative prompt, or None.
        solve_progress: Receives the time of each network evaluation.
    """
    net = velocity_net(loaded, request.latents.event_shape, cond)
    if solve_progress is not None:
        net = net._replace(apply=solve_progress.over(net.apply))
    return Model(net, null_cond=null)


def condition(request: GenerationRequest, cond: Text, indices: np.ndarray) -> Text:
    """Select encoded prompts, and add the guidance scale if it is an input of the network.

    Args:
        request: The request.
        cond: The encoded prompts.
        indices: Index of the prompt of each picture.
    """
    selected = Text(cond.tokens[indices], cond.pooled[indices])
    if not request.distilled or request.guidance is None:
        return selected
    return selected._replace(guidance=np.full(len(indices), request.guidance, np.float32))


def _solve(
    request: GenerationRequest,
    num_samples: int,
    cond: Text,
    null: Text | None,
    x0: np.ndarray | None,
    progress: Progress,
) -> dict[str, np.ndarray]:
    """Solve for the latents of all pictures; the weights are freed when this function returns."""
    config, mesh = request.config, request.mesh
    loaded = load_transformer(
        request.model,
        mesh=mesh,
        dtype=request.dtype,
        progress=progress,
        lora=config.lora,
        lora_scale=config.lora_scale,
    )
    size = padded_batch_size(num_samples, config.batch_size, mesh)
    num_batches = -(-num_samples // size)
    with SolveProgress(progress, "sampling", num_batches) as solve_progress:
        model = released_model(request, loaded, cond, null, solve_progress)
        # The steps are those of the request.
        sampling = Sampling.of(
            solver=config.solver, num_steps=1, guidance=guidance_scale(request, null)
        )
        seed = seed_data(config.seed)
        sample = make_batch_solver(
            model.process,
            make_solve(model, sampling),
            request.steps,
            request.latents.event_shape,
            mesh,
        )

        def solve_batch(
            indices: jax.Array, text: Text, start: Points | None
        ) -> dict[str, jax.Array]:
            solved = sample(loaded.params, seed, indices, text, start)
            return {"x1": solved.x1, "nfe": solved.nfe, "succeeded": solved.succeeded}

        return map_batched(
            solve_batch,
            lambda indices: (
                indices,
                condition(request, cond, indices // config.num_images),
                None if x0 is None else x0[indices],
            ),
            num_samples,
            batch_size=config.batch_size,
            mesh=mesh,
            on_batch=lambda _: solve_progress.next(),
        )


def decode_latents(
    request: GenerationRequest,
    latents: np.ndarray,
    progress: Progress = Silent(),
    on_image: Callable[[int, np.ndarray], None] = lambda index, image: None,
) -> np.ndarray:
    """Decode latents to images one by one, large images in tiles.

    Args:
        request: The request.
        latents: Latents, `[num, height, width, channel]`.
        progress: Receives progress reports.
        on_image: `(index, image)` is called after each image.

    Returns:
        Images in [-1, 1], `[num, height, width, channel]`.
    """
    loaded = request.model.load("vae", mesh=request.mesh, dtype="float32", progress=progress)
    config, vae = loaded.component.config, loaded.component.network
    tile = max(1, request.config.tile // request.latents.factor)

    def decode(params: Params, latents: jax.Array) -> jax.Array:
        return decode_tiled(vae.decode, params, config.unscaled(latents), tile=tile)

    decode_one = jax.jit(on_mesh(request.mesh, decode))
    height, width, _ = request.latents.event_shape
    size = height * request.latents.factor, width * request.latents.factor
    images = np.empty((len(latents), *size, config.channels_out), np.float32)
    with progress.task("decoding", len(latents)) as advance:
        advance(0, COMPILING)
        for index, latent in enumerate(latents):
            images[index] = np.asarray(decode_one(loaded.params, latent[None]))[0]
            on_image(index, images[index])
            advance()
    return images
