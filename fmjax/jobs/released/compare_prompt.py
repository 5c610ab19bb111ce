"""Compare fixed and adaptive solvers on a prompt with a released model, from the same noise."""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._arrays import Params
from fmjax._files import require_folder, require_outside, require_target
from fmjax._locks import lock_folder
from fmjax._progress import Progress, Silent
from fmjax.config import ODE_SOLVERS, solver_title
from fmjax.config.compare import ComparePromptConfig
from fmjax.config.generate import GenerateConfig
from fmjax.jobs.compare.compare import compare
from fmjax.jobs.compare.methods import Method, adaptive_settings, fixed_settings, ode_solve
from fmjax.jobs.released.generate import condition, decode_latents, encode_request, released_model
from fmjax.jobs.released.request import (
    GenerationRequest,
    guidance_scale,
    matmul_precision,
    validate_request,
)
from fmjax.paths import CountedField, evaluations
from fmjax.pretrained.folder import ModelFolder
from fmjax.pretrained.pipeline import load_transformer, released_times
from fmjax.pretrained.validate import validate_model
from fmjax.report.comparison import Comparison, SolverRun, write_csv, write_json
from fmjax.report.content import Report
from fmjax.report.gallery import GalleryEntry, write_gallery
from fmjax.report.page import write_report
from fmjax.runs.folder import require_no_run
from fmjax.runs.sampling.batches import sample_source_points
from fmjax.sharding import batch_sharding, num_shares, on_mesh
from fmjax.solvers import ClassifierFree

_MAX_SIDE = 256  # Maximum side of a picture in the gallery, in pixels.


def compare_prompt(
    model: ModelFolder,
    prompt: str,
    output: Path,
    config: ComparePromptConfig = ComparePromptConfig(),  # noqa: B008 (frozen)
    picture: GenerateConfig = GenerateConfig(),  # noqa: B008
    *,
    progress: Progress = Silent(),
) -> Comparison:
    """Generate pictures of a prompt with every solver and setting, and write tables and a report.

    Errors are differences of latents from an accurate solve from the same noise.

    Args:
        model: The model, from `open_model`.
        prompt: The prompt.
        output: Folder of the results; existing results in it are replaced.
        config: Solvers and settings to compare.
        picture: Size, guidance, seed, number of pictures and the like. Solver, steps and batch size
            have no effect: all pictures form one batch.
        progress: Receives progress reports.

    Raises:
        ValueError: If the model does not support the request, or there is nothing to compare.
    """
    euler = dataclasses.replace(picture, solver="euler", num_steps=1)
    request = validate_request(model, euler, progress)
    validate_model(model, lora=picture.lora, max_tokens=picture.max_tokens)
    require_folder(output)
    require_no_run(output)
    require_outside(output, model.root)
    with lock_folder(output, "output folder"):
        return _compare(request, prompt, output, config, progress)


def _compare(
    request: GenerationRequest,
    prompt: str,
    output: Path,
    config: ComparePromptConfig,
    progress: Progress,
) -> Comparison:
    """Compare the solvers and write the results; the output folder is locked."""
    for name in ("comparison.csv", "comparison.json", "gallery.npz", "report.html"):
        require_target(output / name)
    shards = num_shares(request.mesh)
    num = -(-request.config.num_images // shards) * shards
    with matmul_precision(request.dtype):
        rows, comparison = _solve_all(request, prompt, num, config, progress)
        flat = np.concatenate([latents for _, latents in rows])
        images = decode_latents(request, flat, progress)
        images = images.reshape(len(rows), num, *images.shape[1:])
    comparison = comparison._replace(guidance=1.0 if request.guidance is None else request.guidance)
    write_csv(comparison, output / "comparison.csv")
    write_json(comparison, output / "comparison.json")
    gallery = [
        GalleryEntry.of(run, _shrink(pictures))
        for (run, _), pictures in zip(rows, images, strict=True)
    ]
    write_gallery(gallery, output / "gallery.npz")
    page = write_report(_report(request, prompt, num, config, comparison, gallery), output)
    progress.say(f"wrote {page}")
    return comparison


def _solve_all(
    request: GenerationRequest,
    prompt: str,
    num: int,
    config: ComparePromptConfig,
    progress: Progress,
) -> tuple[list[tuple[SolverRun, np.ndarray]], Comparison]:
    """Solve each row of the comparison; the weights are freed when this function returns.

    Returns:
        Each row with its latents, and the comparison.
    """
    mesh = request.mesh
    text, null = encode_request(request, [prompt], progress)
    scale = guidance_scale(request, null)
    loaded = load_transformer(
        request.model,
        mesh=mesh,
        dtype=request.dtype,
        progress=progress,
        lora=request.config.lora,
        lora_scale=request.config.lora_scale,
    )
    transformer = ClassifierFree(scale)(released_model(request, loaded, text, null))

    def field(params: Params) -> CountedField:
        velocity_fn = transformer.velocity_fn(params)

        return CountedField(on_mesh(mesh, velocity_fn), partial(evaluations, velocity_fn))

    sharding = batch_sharding(mesh)
    key, event_shape = jax.random.key(request.config.seed), request.latents.event_shape
    x0 = sample_source_points(transformer.process, key, jnp.arange(num), event_shape)
    cond = jax.device_put(condition(request, text, np.zeros(num, int)), sharding)
    rows: list[tuple[SolverRun, np.ndarray]] = []
    comparison = compare(
        field,
        loaded.params,
        jax.device_put(x0, sharding),
        cond,
        methods=_methods(request, config, field),
        # With bfloat16, a smaller tolerance would resolve rounding errors.
        reference_tolerance=None if request.dtype == "float32" else 1e-3,
        in_float64=request.dtype == "float32" and jax.default_backend() == "cpu",
        on_row=lambda row: rows.append((row.run, row.x1)),
        progress=progress,
    )
    return rows, comparison


def _methods(
    request: GenerationRequest,
    config: ComparePromptConfig,
    field: Callable[[Params], CountedField],
) -> list[Method]:
    def model_grid(num_steps: int) -> jax.Array:
        return jnp.asarray(released_times(request.model, request.latents, num_steps))

    methods = []
    for name in config.fixed_solvers:
        settings = fixed_settings(config.num_steps, model_grid)
        solve = ode_solve(field, ODE_SOLVERS[name]())
        methods.append(Method(f"{solver_title(name)}, the model's steps", "fixed", solve, settings))
    for name in config.adaptive_solvers:
        settings = adaptive_settings(config.tolerances)
        solve = ode_solve(field, ODE_SOLVERS[name]())
        methods.append(Method(solver_title(name), "adaptive", solve, settings))
    return methods


def _size(request: GenerationRequest) -> tuple[int, int]:
    """Height and width of the pictures in pixels."""
    height, width, _ = request.latents.event_shape
    return height * request.latents.factor, width * request.latents.factor


def _shrink(images: np.ndarray) -> np.ndarray:
    """Shrink pictures by averaging blocks of pixels until they fit the gallery."""
    factor = -(-max(images.shape[1:3]) // _MAX_SIDE)
    height, width = (side // factor * factor for side in images.shape[1:3])
    num, channels = len(images), images.shape[-1]
    blocks = images[:, :height, :width].reshape(num, height // factor, factor, -1, factor, channels)
    return blocks.mean((2, 4))


def _report(
    request: GenerationRequest,
    prompt: str,
    num: int,
    config: ComparePromptConfig,
    comparison: Comparison,
    gallery: list[GalleryEntry],
) -> Report:
    height, width = _size(request)
    settings = {"picture": request.config, "solvers": config}
    return Report(
        title=f"“{prompt}”",
        summary=f"{num} picture{'' if num == 1 else 's'} of {width}x{height} pixels by "
        f"{request.model.root.resolve().name} with each solver, from the same noise.",
        comparison=comparison,
        config=json.loads(
            json.dumps(
                {name: dataclasses.asdict(part) for name, part in settings.items()}, default=str
            )
        ),
        gallery=tuple(gallery),
    )
