"""What samples are asked to be: classes, or prompts in words."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fmjax._arrays import TokenShape
from fmjax._checks import require, require_unicode
from fmjax._progress import Progress, Silent
from fmjax.data import Dataset
from fmjax.runs.folder import Run, some_texts
from fmjax.runs.sampling.batches import even_labels

_FOR_EACH = 8  # Samples of a prompt, where nobody says which.


class SampleConditions(NamedTuple):
    """What each sample is asked to be.

    Attributes:
        cond: For the network, a row for each sample: labels or tokens; None without condition.
        labels: The class or the number of the prompt, int32 `[num]`, or None.
        prompts: By their numbers; none for classes.
    """

    cond: Any = None
    labels: np.ndarray | None = None
    prompts: tuple[str, ...] = ()

    @classmethod
    def of_classes(cls, labels: np.ndarray | None) -> "SampleConditions":
        """To be of these classes."""
        return cls(labels, labels)


def requested_conditions(
    run: Run,
    num: int,
    classes: tuple[int, ...] = (),
    prompts: Sequence[str] = (),
    *,
    progress: Progress = Silent(),
) -> SampleConditions:
    """What `num` samples are asked to be: these classes or prompts in turn, in rising order.

    Args:
        run: A trained run.
        num: How many samples.
        classes: None for all, evenly.
        prompts: None for some captions that the run was trained on.
        progress: Hears of words that the run does not know.

    Raises:
        ValueError: If the model has no such class or takes no prompts.
    """
    if not isinstance(run.conditions, TokenShape):
        rule = "be left out for a model that was not trained on captions"
        require(not prompts, "prompts", rule, tuple(prompts))
        return SampleConditions.of_classes(chosen_labels(num, run.num_classes, classes))
    require(not classes, "classes", "be left out for a model of captions", classes)
    some = some_texts(run.captions, min(num, max(4, num // _FOR_EACH)))
    prompts = tuple(prompts or some)
    require_unicode("prompts", *prompts)
    tokenizer = run.tokenizer
    unknown = tokenizer.unknown(prompts)
    if unknown:
        progress.say(f"words that were not among the captions: {', '.join(unknown)}")
    for prompt in tokenizer.cut(prompts):
        progress.say(f"warning: of {prompt!r} the run sees {tokenizer.num_tokens} words, no more")
    tokens = tokenizer.encode(prompts)
    if wordless := [repr(prompts[row]) for row in tokenizer.wordless(tokens)]:
        progress.say(f"warning: prompts without a word that the run knows: {', '.join(wordless)}")
    labels = even_labels(num, len(prompts))
    assert labels is not None
    return SampleConditions(tokens[labels], labels, prompts)


def even_conds(run: Run, num: int) -> Any:
    """A condition for each of `num` samples, spread over classes or captions; None without."""
    texts = some_texts(run.captions, num) if isinstance(run.conditions, TokenShape) else ()
    return requested_conditions(run, num, (), texts).cond


def conds_of(run: Run, dataset: Dataset, indices: np.ndarray) -> Any:
    """The conditions of some examples as the run knows them; None for a model without."""
    if run.conditions is None:
        return None
    if dataset.captions is None:
        return dataset.conds(indices)
    texts = dataset.captions.texts
    return run.tokenizer.encode([texts[int(index)] for index in indices])


def data_conditions(run: Run, dataset: Dataset, num: int, seed: int) -> SampleConditions:
    """To be what the data are: their conditions in a random order, over and over.

    The labels are known of captions too, if the data have both.
    """
    if run.conditions is None:
        return SampleConditions()
    which = _random_order(dataset, num, seed)
    return SampleConditions(conds_of(run, dataset, which), dataset.classes(which))


def labels_like(dataset: Dataset, num: int, seed: int) -> np.ndarray:
    """Labels with the data's own shares: its labels in a random order, over and over."""
    labels = dataset.classes(_random_order(dataset, num, seed))
    assert labels is not None
    return labels


def _random_order(dataset: Dataset, num: int, seed: int) -> np.ndarray:
    return np.resize(np.random.default_rng(seed).permutation(len(dataset)), num)


def chosen_labels(
    num_samples: int, num_classes: int | None, classes: tuple[int, ...]
) -> np.ndarray | None:
    """A label for each sample: the chosen classes in turn, in the order of their rows.

    Raises:
        ValueError: If the model has no such class.
    """
    if not classes:
        return even_labels(num_samples, num_classes)
    require(num_classes is not None, "classes", "be left out for a model without", classes)
    assert num_classes is not None
    for label in classes:
        require(0 <= label < num_classes, "class", f"lie in 0 .. {num_classes - 1}", label)
    which = even_labels(num_samples, len(classes))
    return np.asarray(classes, np.int32)[which]
