"""Conditions of samples: class labels, prompts or arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from fmjax._arrays import Cond
from fmjax._checks import require, require_at_least, require_unicode
from fmjax._inputs import describe
from fmjax._progress import Progress, Silent
from fmjax._specs import has_arrays, is_captions
from fmjax.data import Dataset
from fmjax.runs.folder import Labels, Run, select_texts
from fmjax.runs.sampling.batches import even_labels
from fmjax.runs.sampling.condition_arrays import (
    checked_conditions,
    data_condition_arrays,
    num_conditions,
    require_same_conditions,
)

_SAMPLES_PER_PROMPT = 8  # Number of samples per prompt if no prompts are given.


class SampleConditions(NamedTuple):
    """Conditions of samples, as the network takes them and as labels.

    Attributes:
        cond: Class labels, tokens, or arrays in data units, with one row per sample; None for an
            unconditional model.
        labels: Class label, or index of the prompt in `prompts`, of each sample, int32 `[num]`, or
            None.
        prompts: The prompts; empty for classes.
    """

    cond: Cond = None
    labels: np.ndarray | None = None
    prompts: tuple[str, ...] = ()

    @property
    def arrays(self) -> Cond:
        """The condition of a model that is conditioned on arrays; otherwise None."""
        return self.cond if self.labels is None else None

    @classmethod
    def of_classes(cls, labels: np.ndarray | None) -> "SampleConditions":
        """Conditions for class labels; None for an unconditional model."""
        return cls(labels, labels)


def requested_conditions(
    run: Run,
    num: int,
    classes: tuple[int, ...] = (),
    prompts: Sequence[str] = (),
    *,
    arrays: Cond = None,
    progress: Progress = Silent(),
) -> SampleConditions:
    """Spread `num` samples evenly over the requested conditions, grouped in their order.

    Args:
        run: A trained run.
        num: Number of samples.
        classes: Class labels; empty for all classes.
        prompts: Prompts; empty for some captions of the training data.
        arrays: Conditions for a model that is conditioned on arrays, in data units
            (`fmjax.runs.sampling.condition_arrays`); None for those of the test data.
        progress: Receives warnings about words that the tokenizer does not have.

    Raises:
        ValueError: If the model does not have one of the classes or does not take prompts or
            arrays.
    """
    if has_arrays(run.conditions):
        for name, value in (("prompts", tuple(prompts)), ("classes", classes)):
            rule = "be left out for a model that is conditioned on arrays (conditions)"
            require(not value, name, rule, value)
        return SampleConditions(_spread(run, num, arrays, progress))
    rule = "be left out for a model that is not conditioned on arrays"
    require(arrays is None, "conditions", rule, "arrays")
    if not is_captions(run.conditions):
        rule = "be left out for a model that was not trained on captions"
        require(not prompts, "prompts", rule, tuple(prompts))
        return SampleConditions.of_classes(chosen_labels(num, run.num_classes, classes))
    require(not classes, "classes", "be left out for a model conditioned on captions", classes)
    captions = select_texts(run.captions, min(num, max(4, num // _SAMPLES_PER_PROMPT)))
    prompts = tuple(prompts or captions)
    require_unicode("prompts", *prompts)
    tokenizer = run.tokenizer
    unknown = tokenizer.unknown(prompts)
    if unknown:
        progress.say(f"words that are not in the training captions: {', '.join(unknown)}")
    for prompt in tokenizer.cut(prompts):
        progress.say(f"warning: prompt {prompt!r} is cut to {tokenizer.num_tokens} words")
    tokens = tokenizer.encode(prompts)
    if wordless := [repr(prompts[row]) for row in tokenizer.wordless(tokens)]:
        names = ", ".join(wordless)
        progress.say(f"warning: prompts without any word of the training captions: {names}")
    labels = even_labels(num, len(prompts))
    assert labels is not None
    return SampleConditions(tokens[labels], labels, prompts)


def _spread(run: Run, num: int, arrays: Cond, progress: Progress) -> Cond:
    """Repeat conditions so that there is one per sample, or take those of the test data."""
    if arrays is None:
        return data_condition_arrays(run, num, progress)
    num_rows = num_conditions(arrays)
    require_at_least(f"num_samples for {num_rows} conditions", num, num_rows)
    rows = even_labels(num, num_rows)
    return jax.tree.map(lambda array: array[rows], arrays)


def class_labels(classes: Labels) -> np.ndarray:
    """Convert class labels to an int32 array.

    Raises:
        ValueError: If they are not integers.
    """
    labels = np.asarray(classes)
    is_integer = labels.dtype.kind in "iu" or labels.size == 0
    require(is_integer, "classes", "be integers", describe(classes))
    return labels.astype(np.int32)


def conditions_of_points(
    run: Run,
    num: int,
    classes: Labels | None = None,
    prompts: Sequence[str] | str | None = None,
    arrays: Cond = None,
) -> Cond:
    """Conditions of `num` given points, in data units.

    Args:
        run: A trained run.
        num: Number of points.
        classes: Class label of each point `[num]`, or one for all, for a model of classes.
        prompts: Prompt of each point, or one for all, for a model of captions.
        arrays: Condition of each point, or one for all, for a model that is conditioned on arrays.

    Returns:
        Labels int32 `[num]`, tokens int32 `[num, tokens]`, or arrays `[num, *shape]`; None for an
        unconditional model.

    Raises:
        ValueError: If the conditions are not those that the model takes, one per point.
    """
    takes_prompts = is_captions(run.conditions)
    takes_classes = run.num_classes is not None
    takes_arrays = has_arrays(run.conditions)
    for name, value, takes in (
        ("classes", classes, takes_classes),
        ("prompts", prompts, takes_prompts),
        ("cond", arrays, takes_arrays),
    ):
        what = "arrays" if name == "cond" else name
        rule = f"be given for a model that is conditioned on {what}, one per point"
        require(value is not None or not takes, name, rule, None)
        rule = f"be left out for a model that is not conditioned on {what}"
        require(value is None or takes, name, rule, value if name != "cond" else "arrays")
    if takes_arrays:
        arrays = checked_conditions("cond", arrays, run.conditions)
        num_rows = num_conditions(arrays)
        require(num_rows in (1, num), "cond", f"have 1 row or {num}, one per point", num_rows)
        return jax.tree.map(lambda array: np.broadcast_to(array, (num, *array.shape[1:])), arrays)
    if takes_prompts:
        texts = [prompts] * num if isinstance(prompts, str) else list(prompts or ())
        require(len(texts) == num, "prompts", f"be one text or {num}", f"{len(texts)}")
        require_unicode("prompts", *texts)
        return run.tokenizer.encode(texts)
    if not takes_classes:
        return None
    labels = class_labels(() if classes is None else classes)
    rule = f"be one label or have shape {(num,)}"
    require(labels.shape in ((), (num,)), "classes", rule, f"shape {labels.shape}")
    for label in (labels.min(), labels.max()):
        _require_class(int(label), run.num_classes or 0)
    return np.broadcast_to(labels, (num,))


def even_conds(run: Run, num: int) -> Cond:
    """Conditions of `num` samples as the network takes them, spread evenly over those of the run.

    Returns:
        Labels, tokens or arrays, one row per sample; None for an unconditional model.
    """
    texts = select_texts(run.captions, num) if is_captions(run.conditions) else ()
    return run.standardization.conds(requested_conditions(run, num, (), texts).cond)


def network_conditions(run: Run, dataset: Dataset, indices: np.ndarray) -> Cond:
    """Conditions of the examples at `indices`, in data units.

    Returns:
        Labels, tokens or arrays, one row per example; None for an unconditional model.
    """
    if run.conditions is None:
        return None
    if dataset.captions is None:
        if has_arrays(run.conditions):
            require_same_conditions(run, dataset)
        return dataset.conds(indices)
    texts = dataset.captions.texts
    return run.tokenizer.encode([texts[int(index)] for index in indices])


def data_conditions(run: Run, dataset: Dataset, num: int, seed: int) -> SampleConditions:
    """Conditions for `num` samples, taken from the dataset in random order and repeated if needed.

    The result has labels for captions, too, if the dataset has class labels.
    """
    if run.conditions is None:
        return SampleConditions()
    indices = _random_order(dataset, num, seed)
    return SampleConditions(network_conditions(run, dataset, indices), dataset.classes(indices))


def labels_like(dataset: Dataset, num: int, seed: int) -> np.ndarray:
    """Labels of the dataset in random order, repeated if needed, int32 `[num]`."""
    labels = dataset.classes(_random_order(dataset, num, seed))
    assert labels is not None
    return labels


def _random_order(dataset: Dataset, num: int, seed: int) -> np.ndarray:
    return np.resize(np.random.default_rng(seed).permutation(len(dataset)), num)


def chosen_labels(
    num_samples: int, num_classes: int | None, classes: tuple[int, ...]
) -> np.ndarray | None:
    """Spread samples evenly over the chosen classes, grouped in the order of `classes`.

    Args:
        num_samples: Number of samples.
        num_classes: Number of classes of the model; None for an unconditional model.
        classes: Class labels; empty for all classes.

    Returns:
        Labels, int32 `[num_samples]`; None for an unconditional model.

    Raises:
        ValueError: If the model does not have one of the classes.
    """
    if not classes:
        return even_labels(num_samples, num_classes)
    require(num_classes is not None, "classes", "be left out for a model without classes", classes)
    assert num_classes is not None
    for label in classes:
        _require_class(label, num_classes)
    indices = even_labels(num_samples, len(classes))
    return np.asarray(classes, np.int32)[indices]


def _require_class(label: int, num_classes: int) -> None:
    require(0 <= label < num_classes, "class", f"be between 0 and {num_classes - 1}", label)
