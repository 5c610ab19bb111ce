"""Encode images and captions with the encoders of a released model, for training."""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._arrays import Params, Text, TextShape
from fmjax._checks import require_unicode
from fmjax._files import fingerprint, require_folder, require_outside, require_space
from fmjax._locks import lock_folder
from fmjax._progress import COMPILING, Advance, Progress, Silent
from fmjax.config.encode import EncodeConfig
from fmjax.data import (
    CaptionedImages,
    Dataset,
    NoSuchSplit,
    encoded_manifest,
    missing_shards,
    prepare_records,
    write_shard,
)
from fmjax.data.dataset import SPLITS
from fmjax.data.sources.encoded import LATENTS, POOLED, TOKENS
from fmjax.data.sources.image_files import ImageFiles
from fmjax.jobs.released.request import matmul_precision
from fmjax.pretrained.files import find_files
from fmjax.pretrained.folder import ModelFolder, tokenizer_part
from fmjax.pretrained.pipeline import latents_of
from fmjax.pretrained.prompts import PromptEncoding, combine_encodings, load_encoder
from fmjax.pretrained.validate import validate_model
from fmjax.runs.folder import require_no_run
from fmjax.sharding import make_mesh, map_batched, num_shares, on_mesh


class _Encoders(NamedTuple):
    """The encoders of a model, with their weights on the devices.

    Attributes:
        text: Encodes captions; returns the result and its sizes.
        image: Encodes images `[num, height, width, channel]` to latents.
    """

    text: Callable[[list[str]], tuple[Text, TextShape]]
    image: Callable[[np.ndarray], np.ndarray]


def encode(
    model: ModelFolder,
    images: Path,
    output: Path,
    config: EncodeConfig = EncodeConfig(),  # noqa: B008 (frozen)
    *,
    progress: Progress = Silent(),
) -> None:
    """Encode a folder of images with captions, and write latents and texts for `EncodedData`.

    Latents are the means of the autoencoder, shifted and scaled as in the model. Shards that exist
    already are kept, so an interrupted call can be repeated.

    Args:
        model: The model, from `open_model`; its transformer is not needed.
        images: A folder of images with captions in the layout of `CaptionedImages`.
        output: The output folder.
        config: Settings of the encoding.
        progress: Receives progress reports.

    Raises:
        ValueError: If images and captions do not match, the size is not a multiple of the factor of
            the autoencoder, or the output folder is a run folder or holds another dataset.
    """
    require_unicode("output", output.absolute())  # ArrayRecord needs a UTF-8 path.
    _check_output(output, images, model)
    with lock_folder(output, "output folder"):
        _encode(model, images, output, config, progress)


def _check_output(output: Path, images: Path, model: ModelFolder) -> None:
    """Raise unless the output folder differs from run folders and from the input folders."""
    require_folder(output)
    require_no_run(output)
    require_outside(output, model.root)
    require_outside(output, images)
    for split in SPLITS:  # The output folder may contain the images, but its splits may not.
        require_outside(images, output / split, "images")


def _encode(
    model: ModelFolder, images: Path, output: Path, config: EncodeConfig, progress: Progress
) -> None:
    """Encode all splits; the output folder is locked."""
    latents = latents_of(model, config.size, config.size)
    validate_model(model, transformer=False, max_tokens=config.max_tokens)
    data = CaptionedImages(str(images), config.size, config.test_every)
    datasets: dict[str, Dataset] = {}
    for split in SPLITS:
        try:
            datasets[split] = data.load(split, progress=progress)
        except NoSuchSplit as error:
            if split == "train":
                raise
            progress.say(f"no test images: {error}")
    with matmul_precision(config.dtype):
        num_encoded = _write_splits(model, config, datasets, output, latents.event_shape, progress)
    num_existing = sum(map(len, datasets.values())) - num_encoded
    existing = f", {num_existing} examples existed already" if num_existing else ""
    progress.say(f"encoded {num_encoded} examples to {output}{existing}")


def _write_splits(
    model: ModelFolder,
    config: EncodeConfig,
    datasets: dict[str, Dataset],
    output: Path,
    event_shape: tuple[int, ...],
    progress: Progress,
) -> int:
    """Write the missing shards; return the number of examples that were encoded."""
    encoders, num_encoded = _load(model, config, progress), 0
    _, text = encoders.text([""])
    for split, dataset in datasets.items():
        # Fingerprints, so that shards of other images or of another model are not continued.
        assert dataset.captions is not None
        assert isinstance(dataset.x, ImageFiles)
        origin = {
            "model": model.root.resolve().name,
            "size": config.size,
            "parts": fingerprint(_files_of(model)),
            "captions": hashlib.sha256("\0".join(dataset.captions.texts).encode()).hexdigest(),
            "images": fingerprint(dataset.x.files, pieces=2),
        }
        manifest = encoded_manifest(
            event_shape,
            text,
            len(dataset),
            dtype=config.dtype,
            examples_per_shard=config.examples_per_shard,
            origin=origin,
        )
        folder = output / split
        prepare_records(folder, manifest)
        missing = missing_shards(folder, manifest)
        require_space(output, manifest.num_bytes(missing), f"{split} records")
        total = sum(len(manifest.examples(number)) for number in missing)
        num_encoded += total
        with progress.task(f"encoding {split}", total) as advance:
            advance(0, COMPILING)
            for number in missing:
                arrays = _encode_shard(
                    dataset, manifest.examples(number), encoders, config, advance
                )
                write_shard(folder, manifest, number, arrays)
    return num_encoded


def _files_of(model: ModelFolder) -> Iterator[Path]:
    """The files of a model that determine the encodings of images and captions."""
    for part in ("vae", *filter(model.has, model.encoders)):
        yield model.root / part / "config.json"
        yield from find_files(model.root / part)
        if part in model.encoders:
            tokenizer_files = sorted((model.root / tokenizer_part(part)).iterdir())
            yield from (file for file in tokenizer_files if file.is_file())


def _encode_shard(
    dataset: Dataset, examples: range, encoders: _Encoders, config: EncodeConfig, advance: Advance
) -> dict[str, np.ndarray]:
    """Encode the examples of one shard in batches."""
    assert dataset.captions is not None
    parts: dict[str, list[np.ndarray]] = {LATENTS: [], TOKENS: [], POOLED: []}
    for first in range(0, len(examples), config.batch_size):
        indices = np.array(examples[first : first + config.batch_size])
        text, _ = encoders.text([dataset.captions.texts[index] for index in indices])
        parts[LATENTS].append(encoders.image(dataset.points(indices)))
        parts[TOKENS].append(text.tokens)
        parts[POOLED].append(text.pooled)
        advance(len(indices))
    dtype = jnp.dtype(config.dtype)
    return {name: np.concatenate(arrays).astype(dtype) for name, arrays in parts.items()}


def _load(model: ModelFolder, config: EncodeConfig, progress: Progress) -> _Encoders:
    """Load the text encoders and the autoencoder."""
    mesh = make_mesh(config.mesh)
    encoding = PromptEncoding(config.max_tokens, config.dtype, config.batch_size)
    encoders = [
        load_encoder(model, part, encoding, mesh=mesh, progress=progress)
        if model.has(part)
        else None
        for part in model.encoders
    ]

    warnings = _WarningsOnly(progress)

    def text(captions: list[str]) -> tuple[Text, TextShape]:
        outputs = [encoder and encoder(captions, warnings) for encoder in encoders]
        return combine_encodings(model, outputs, encoding)

    component, params = model.load("vae", mesh=mesh, dtype="float32", progress=progress)

    def latents(params: Params, images: jax.Array) -> jax.Array:
        return component.config.scaled(component.network.encode(params, images)[0])

    latents_of_batch = partial(jax.jit(on_mesh(mesh, latents)), params)

    def image(images: np.ndarray) -> np.ndarray:
        # One image per device at a time, because attention on large images takes gigabytes.
        return map_batched(
            latents_of_batch,
            lambda indices: (images[indices],),
            len(images),
            batch_size=num_shares(mesh),
            mesh=mesh,
        )

    return _Encoders(text, image)


class _WarningsOnly(Silent):
    """Pass lines, such as warnings about truncated captions, on to `progress`, and ignore tasks."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def say(self, line: str) -> None:
        self._progress.say(line)
