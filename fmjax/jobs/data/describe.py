"""Describe the data of a config: counts, shape, range, conditions and a picture of examples."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fmjax._arrays import is_image, noun
from fmjax._files import lock_outputs, require_outside, require_target, write_atomically
from fmjax._progress import Progress, Silent
from fmjax._specs import named_arrays
from fmjax.config import Config
from fmjax.data import (
    CaptionedImages,
    Dataset,
    DataSource,
    ImageFolder,
    NoSuchSplit,
    fit_standardization,
    load,
)
from fmjax.runs.folder import select_texts
from fmjax.runs.sampling.batches import SampleSet
from fmjax.runs.sampling.files import sample_grid

_CHUNK = 1_024  # Examples whose values are read at a time.
_MAX_READ = 512  # Examples of files and decoded images whose values are read.
_MAX_LISTED = 40  # Classes listed in full.
_MAX_ROWS, _COLUMNS = 20, 10  # Of a picture with one row per class.
_MAX_PROMPTS = 12  # Rows of a picture with one row per caption.
_MAX_POINTS = 5_000  # Points of a scatter plot.


class _Values(NamedTuple):
    """Statistics of the numbers in some examples.

    Attributes:
        num_examples: Number of examples.
        low: Smallest number.
        high: Largest number.
        mean: Mean of all numbers.
        std: Standard deviation of all numbers.
    """

    num_examples: int
    low: float
    high: float
    mean: float
    std: float


def describe_data(config: Config, output: Path, *, progress: Progress = Silent()) -> bool:
    """Load both splits as a training does, report their content, and write a picture of examples.

    Args:
        config: The experiment.
        output: PNG file of the picture: a grid of images with one row per class or caption, or
            points in the plane.
        progress: Receives the report, one line at a time.

    Returns:
        Whether a picture was written; there is none of other shapes, such as latents.

    Raises:
        ValueError: If the data are missing or invalid, or `output` is not a PNG file outside the
            folder of the images.
    """
    require_target(output, suffix=".png")
    for data in (config.data, config.source):
        if isinstance(data, CaptionedImages | ImageFolder):  # Else it would become an example.
            require_outside(output, Path(data.folder).expanduser())
    with lock_outputs(output):
        train, test = _load_splits(config.data, config, "data", progress)
        for line in summarize_data(train, test, progress):
            progress.say(line)
        if config.standardize:
            for line in _summarize_moments(train, progress):
                progress.say(line)
        if train.conditions is None:
            progress.say("no conditions: the model is unconditional")
        if config.source is not None:
            source, source_test = _load_splits(config.source, config, "source", progress)
            for line in summarize_data(source.unconditional(), source_test, progress):
                progress.say(f"source: {line}")
        picture = example_picture(train)
        if picture is None:
            progress.say(f"no picture: examples of shape {train.event_shape} are not shown")
            return False
        with write_atomically(output) as temporary:
            temporary.write_bytes(picture)
    progress.say(f"wrote {output}")
    return True


def _load_splits(
    data: DataSource, config: Config, name: str, progress: Progress
) -> tuple[Dataset, Dataset | None]:
    """Load the splits of a data set; report if there is no test split."""
    train = load(data, "train", progress=progress)
    try:
        test = load(data, "test", progress=progress)
    except NoSuchSplit as error:
        progress.say(f"{name} without a test split: {error}")
        test = None
    if config.conditional:
        return train, test
    return train.unconditional(), None if test is None else test.unconditional()


def summarize_data(
    train: Dataset, test: Dataset | None, progress: Progress = Silent()
) -> Iterator[str]:
    """Yield lines on the examples of each split and on their conditions.

    Args:
        train: The training split.
        test: The test split, or None if there is none.
        progress: Receives a task while values are read.
    """
    kind = "uint8 pixels, scaled to [-1, 1]" if train.x.dtype == np.uint8 else str(train.x.dtype)
    yield f"{noun(train.event_shape)} of shape {train.event_shape}, {kind}"
    for name, dataset in (("train", train), ("test", test)):
        if dataset is not None:
            values = _measure_values(dataset, progress)
            part = f" (of {values.num_examples:,} examples)"
            yield (
                f"{name}: {len(dataset):,} examples, values {values.low:.4g} to {values.high:.4g}, "
                f"mean {values.mean:.3g}, std {values.std:.3g}"
                + (part if values.num_examples < len(dataset) else "")
            )
    if train.captions is not None:
        yield from _summarize_captions(train, test)
    if train.text is not None:
        (_, num_tokens, width), (_, pooled_width) = train.text.tokens.shape, train.text.pooled.shape
        yield f"encoded prompts: {num_tokens} tokens of width {width}, pooled width {pooled_width}"
    if train.cond is not None:
        yield from _summarize_conditions(train, test)
    if train.labels is not None:
        yield from _summarize_classes(train, test)


def _summarize_moments(train: Dataset, progress: Progress) -> Iterator[str]:
    """Yield a line on the mean and standard deviation of each array that is standardized."""
    for name, moments in fit_standardization(train, progress=progress).moments.items():
        means, stds = (f"{min(values):.4g} to {max(values):.4g}" for values in moments)
        yield f"standardized {name}: subtract means of {means}, divide by {stds}"


def _measure_values(dataset: Dataset, progress: Progress) -> _Values:
    """Measure the values of all examples in memory, or of some that are read from files."""
    in_memory = isinstance(dataset.x, np.ndarray) and not isinstance(dataset.x, np.memmap)
    num = len(dataset) if in_memory else min(len(dataset), _MAX_READ)
    indices = np.linspace(0, len(dataset) - 1, num).astype(int)
    low, high, total, squares = math.inf, -math.inf, 0.0, 0.0
    # Arrays in memory are read within a second.
    task = (Silent() if in_memory else progress).task("reading examples", num)
    with task as advance:
        for first in range(0, num, _CHUNK):
            points = dataset.points(indices[first : first + _CHUNK])
            low, high = min(low, float(points.min())), max(high, float(points.max()))
            total += float(points.sum(dtype=np.float64))
            squares += float(np.square(points, dtype=np.float64).sum())
            advance(len(points))
    size = num * math.prod(dataset.event_shape)
    mean = total / size
    return _Values(num, low, high, mean, math.sqrt(max(0.0, squares / size - mean**2)))


def _summarize_conditions(train: Dataset, test: Dataset | None) -> Iterator[str]:
    """Yield a line on each array of the conditions, of some examples of each split."""
    splits = {"train": train} if test is None else {"train": train, "test": test}
    values = {
        name: named_arrays(
            dataset.conds(
                np.linspace(0, len(dataset) - 1, min(len(dataset), _MAX_READ)).astype(int)
            )
        )
        for name, dataset in splits.items()
    }
    yield "conditions:"
    for name, spec in named_arrays(train.conditions).items():
        kind = f"{spec.kind} of shape {spec.shape}" if spec.shape else "number"
        if spec.num_values is not None:
            kind = f"{'label' if spec.kind == 'label' else kind} in [0, {spec.num_values})"
        ranges = ", ".join(
            f"{split} {arrays[name].min():.4g} to {arrays[name].max():.4g}"
            for split, arrays in values.items()
        )
        yield f"  {name}: {kind}, {ranges}"


def _summarize_classes(train: Dataset, test: Dataset | None) -> Iterator[str]:
    """Yield a table of the classes with their numbers of examples."""
    num_classes = int(train.num_classes or 0)
    counts = [
        np.bincount(dataset.labels, minlength=num_classes)
        for dataset in (train, test)
        if dataset is not None and dataset.labels is not None
    ]
    yield f"{num_classes} class{'es' if num_classes > 1 else ''}:"
    numbers = tuple(map(str, range(num_classes)))
    names = train.class_names or numbers
    has_names = names != numbers
    rows = [("label", "name", "train", "test")[: 2 + len(counts)]]
    listed = num_classes if num_classes <= _MAX_LISTED else _MAX_LISTED // 2
    for label in range(listed):
        rows.append((str(label), names[label], *(f"{count[label]:,}" for count in counts)))
    if not has_names:
        rows = [(row[0], *row[2:]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if has_names and column == 1 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  " + "  ".join(cells).rstrip()
    if listed < num_classes:
        low, high = int(counts[0].min()), int(counts[0].max())
        yield f"  and {num_classes - listed} more; each class has {low:,} to {high:,} in train"
    if empty := int(np.sum(counts[0] == 0)):
        yield f"warning: {empty} of the classes have no training example"


def _summarize_captions(train: Dataset, test: Dataset | None) -> Iterator[str]:
    """Yield lines on the captions and their vocabulary."""
    assert train.captions is not None
    texts, tokenizer, config = train.captions.texts, train.captions.tokenizer, train.captions.config
    yield (
        f"captions: {len(set(texts)):,} different in train, vocabulary of "
        f"{tokenizer.vocab_size:,} tokens (at most {config.vocab_size:,}), "
        f"{config.num_tokens} tokens per caption"
    )
    for text in select_texts(texts, 3):
        yield f"  {text!r}"
    yield from train.captions.warnings()
    if test is not None and test.captions is not None:
        unknown = tokenizer.unknown(dict.fromkeys(test.captions.texts))
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        if unknown:
            yield f"words of test captions that are not in the vocabulary: {len(unknown)} ({shown})"


def example_picture(dataset: Dataset) -> bytes | None:
    """Draw examples as PNG: images in rows of classes or captions, or points in the plane.

    Returns:
        The content of the file; None for examples of other shapes.
    """
    if dataset.event_shape == (2,):
        from fmjax.report.plots import plot_examples
        from fmjax.report.style import png_bytes

        num = min(len(dataset), _MAX_POINTS)
        indices = np.linspace(0, len(dataset) - 1, num).astype(int)
        labels, names = dataset.classes(indices), dataset.class_names or ()
        return png_bytes(plot_examples(dataset.points(indices), labels, names))
    if not is_image(dataset.event_shape):
        return None
    from fmjax.report.images import image_bytes, image_grid

    indices, labels, prompts = _choose_examples(dataset)
    succeeded = np.ones(len(indices), bool)
    examples = SampleSet(
        dataset.points(indices), labels, np.zeros(len(indices), int), succeeded, prompts=prompts
    )
    images, columns, row_labels = sample_grid(examples, dataset.class_names or ())
    return image_bytes(image_grid(images, columns, row_labels=row_labels))


def _choose_examples(
    dataset: Dataset,
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Choose examples for a picture.

    Returns:
        Indices of the examples, the row of each (class or number of the caption; None for any
        row), and the captions.
    """
    if dataset.captions is not None:
        prompts = tuple(select_texts(dataset.captions.texts, _MAX_PROMPTS))
        row_of = {prompt: row for row, prompt in enumerate(prompts)}
        rows = np.asarray([row_of.get(text, -1) for text in dataset.captions.texts])
        chosen = list(range(len(prompts)))
    elif dataset.labels is not None:
        prompts, rows = (), np.asarray(dataset.labels)
        present = np.unique(rows)
        chosen = present[np.linspace(0, len(present) - 1, min(_MAX_ROWS, len(present))).astype(int)]
    else:
        num = min(len(dataset), _COLUMNS**2)
        return np.linspace(0, len(dataset) - 1, num).astype(int), None, ()
    indices = []
    for row in chosen:
        of_row = np.flatnonzero(rows == row)
        num = min(len(of_row), _COLUMNS)
        indices.append(of_row[np.linspace(0, len(of_row) - 1, num).astype(int)])
    return np.concatenate(indices), rows[np.concatenate(indices)], prompts
