"""Images with captions as a released model sees them, once for many trainings."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._arrays import Text
from fmjax._checks import (
    require,
    require_at_least,
    require_numbers,
    require_one_of,
    require_unicode,
)
from fmjax._files import fingerprint, require_folder, require_outside, require_space
from fmjax._locks import lock_folder
from fmjax._progress import COMPILING, Progress, Silent
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
from fmjax.jobs.released.request import products_of
from fmjax.networks.layers.linear import DTYPES
from fmjax.pretrained.files import find_files
from fmjax.pretrained.folder import ModelFolder, tokenizer_part
from fmjax.pretrained.pipeline import latents_of
from fmjax.pretrained.prompts import PromptEncoding, combine_encodings, load_encoder
from fmjax.pretrained.validate import validate_model
from fmjax.runs.folder import require_no_run
from fmjax.sharding import MeshConfig, batch_sharding, make_mesh, num_shares


@dataclass(frozen=True)
class EncodeConfig:
    """How images with captions are encoded.

    Attributes:
        size: Side of the squares that images are cut to, in pixels.
        test_every: About one image in so many is a test image.
        max_tokens: Of a caption, that the largest text encoder sees; None takes the usual number.
        batch_size: Images at once.
        examples_per_shard: Of the files.
        dtype: Of text encoders and files: "float32" or "bfloat16".
        mesh: The layout of the devices. By default each has images of its own.
    """

    size: int = 1024
    test_every: int = 20
    max_tokens: int | None = None
    batch_size: int = 8
    examples_per_shard: int = 256
    dtype: str = "bfloat16"
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        require_numbers(self)
        for name in ("size", "batch_size", "examples_per_shard"):
            require_at_least(name, getattr(self, name), 1)
        require_at_least("test_every", self.test_every, 2)
        require_one_of("dtype", self.dtype, DTYPES)


class _Encoders(NamedTuple):
    """Everything of a model that looks at images or captions, on the devices."""

    text: Callable[[list[str]], tuple[Text, Any]]
    image: Callable[[np.ndarray], np.ndarray]


def encode(
    model: ModelFolder,
    images: Path,
    output: Path,
    config: EncodeConfig = EncodeConfig(),  # noqa: B008 (frozen)
    *,
    progress: Progress = Silent(),
) -> None:
    """Write latents and encoded captions of a folder of images, for `EncodedData`.

    Latents are the means that the autoencoder gives, shifted and scaled as the model wants them.
    Started again, it goes on with the shards that are missing.

    Args:
        model: From `open_model`; its transformer is not needed.
        images: A folder of images with captions, as `CaptionedImages` has it.
        output: The new folder.
        config: How.
        progress: Hears of each part.

    Raises:
        ValueError: If images and captions do not belong together, the size is no multiple of the
            autoencoder's, or the output folder is a run or holds another set.
    """
    require_unicode("output", output.absolute())  # ArrayRecord writes to no other name.
    _check_output(output, images, model)
    with lock_folder(output, "output folder"):
        _encode(model, images, output, config, progress)


def _check_output(output: Path, images: Path, model: ModelFolder) -> None:
    """Raise unless a set can be written there without a change to what it is made of."""
    require_folder(output)
    require_no_run(output)
    require_outside(output, model.path)
    require_outside(output, images)
    for split in SPLITS:  # Images may lie in the folder, but not where its shards go.
        require_outside(images, output / split, "images")


def _encode(
    model: ModelFolder, images: Path, output: Path, config: EncodeConfig, progress: Progress
) -> None:
    """`encode`, while the output is held."""
    latents = latents_of(model, config.size, config.size)
    validate_model(model, transformer=False, max_tokens=config.max_tokens)
    source = CaptionedImages(str(images), config.size, config.test_every)
    found: dict[str, Dataset] = {}
    for split in SPLITS:
        try:
            found[split] = source.load(split, progress=progress)
        except NoSuchSplit as error:
            require(split != "train", "images", "hold some to train on", error)
            progress.say(f"without test images: {error}")
    with products_of(config.dtype):
        made = _write_splits(model, config, found, output, latents.event_shape, progress)
    total = sum(map(len, found.values()))
    there = f", {total - made} were there" if made < total else ""
    progress.say(f"encoded {made} examples to {output}{there}")


def _write_splits(
    model: ModelFolder,
    config: EncodeConfig,
    found: dict[str, Dataset],
    output: Path,
    event_shape: tuple[int, ...],
    progress: Progress,
) -> int:
    """Write what is missing; how many examples these were."""
    encoders, made = _load(model, config, progress), 0
    _, text = encoders.text([""])
    for split, dataset in found.items():
        # What was encoded of other pictures, or by another model, is not to be gone on with.
        assert dataset.captions is not None
        assert isinstance(dataset.x, ImageFiles)
        about = {
            "model": model.path.resolve().name,
            "size": config.size,
            "parts": fingerprint(_files_of(model)),
            "captions": hashlib.sha256("\0".join(dataset.captions.texts).encode()).hexdigest(),
            "images": fingerprint(dataset.x.paths, pieces=2),
        }
        manifest = encoded_manifest(
            event_shape,
            text,
            len(dataset),
            dtype=config.dtype,
            examples_per_shard=config.examples_per_shard,
            about=about,
        )
        folder = output / split
        prepare_records(folder, manifest)
        missing = missing_shards(folder, manifest)
        require_space(output, manifest.num_bytes(missing), f"{split} records")
        total = sum(len(manifest.examples(number)) for number in missing)
        made += total
        with progress.task(f"encoding {split}", total) as advance:
            advance(0, COMPILING)
            for number in missing:
                arrays = _encoded(dataset, manifest.examples(number), encoders, config, advance)
                write_shard(folder, manifest, number, arrays)
    return made


def _files_of(model: ModelFolder) -> Iterator[Path]:
    """What decides how the model sees images and captions."""
    for part in ("vae", *filter(model.has, model.encoders)):
        yield model.path / part / "config.json"
        yield from find_files(model.path / part)
        if part in model.encoders:
            words = sorted((model.path / tokenizer_part(part)).iterdir())
            yield from (path for path in words if path.is_file())


def _encoded(
    dataset: Dataset, numbers: range, encoders: _Encoders, config: EncodeConfig, advance: Any
) -> dict[str, np.ndarray]:
    """The arrays of some examples, batch after batch."""
    assert dataset.captions is not None
    parts: dict[str, list[np.ndarray]] = {LATENTS: [], TOKENS: [], POOLED: []}
    for first in range(0, len(numbers), config.batch_size):
        rows = np.array(numbers[first : first + config.batch_size])
        text, _ = encoders.text([dataset.captions.texts[row] for row in rows])
        parts[LATENTS].append(encoders.image(dataset.points(rows)))
        parts[TOKENS].append(text.tokens)
        parts[POOLED].append(text.pooled)
        advance(len(rows))
    kind = jnp.dtype(config.dtype)
    return {name: np.concatenate(arrays).astype(kind) for name, arrays in parts.items()}


def _load(model: ModelFolder, config: EncodeConfig, progress: Progress) -> _Encoders:
    mesh = make_mesh(config.mesh)
    encoding = PromptEncoding(config.max_tokens, config.dtype, config.batch_size)
    encoders = [
        load_encoder(model, part, encoding, mesh=mesh, progress=progress)
        if model.has(part)
        else None
        for part in model.encoders
    ]

    said = _Warnings(progress)

    def text(captions: list[str]) -> tuple[Text, Any]:
        return combine_encodings(model, [one and one(captions, said) for one in encoders], encoding)

    component, params = model.load("vae", mesh=mesh, dtype="float32", progress=progress)
    place, shares = batch_sharding(mesh), num_shares(mesh)

    @jax.jit
    def latents(params: Any, images: jax.Array) -> jax.Array:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return component.config.scaled(component.network.encode(params, images)[0])

    def image(images: np.ndarray) -> np.ndarray:
        # One on each device at a time: of a large one the attention takes gigabytes.
        found = []
        for first in range(0, len(images), shares):
            rows = np.minimum(np.arange(first, first + shares), len(images) - 1)
            found.append(np.asarray(latents(params, jax.device_put(images[rows], place))))
        return np.concatenate(found)[: len(images)]

    return _Encoders(text, image)


class _Warnings(Silent):
    """Hears of what is cut off, not of every batch."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def say(self, line: str) -> None:
        self._progress.say(line)
