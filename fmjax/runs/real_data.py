"""Real data of a run: its test split, and the classifier trained on it."""

import dataclasses

from fmjax._arrays import (
    is_image,
)
from fmjax._progress import Progress, Silent
from fmjax.data import CaptionedClasses, DataConfig, Dataset, IdxData, NoSuchSplit
from fmjax.metrics import (
    ImageClassifier,
    trained_classifier,
)

MAX_REAL = 60_000  # Real examples that samples are held against, at most.


def data_classifier(data: DataConfig, *, progress: Progress = Silent()) -> ImageClassifier | None:
    """The classifier of some data, trained once and kept; None for what has no classes."""
    if isinstance(data, CaptionedClasses):
        data = data.data
    if isinstance(data, IdxData):  # It learns to tell all classes apart, whichever are asked for.
        data = dataclasses.replace(data, classes=())
    train = data.load("train", progress=progress)
    if train.num_classes is None or not is_image(train.event_shape):
        return None
    test = test_split(data, progress)
    return None if test is None else trained_classifier(train, test, progress=progress)


def test_split(data: DataConfig, progress: Progress) -> Dataset | None:
    """The test data, or None, and that is said, where there are none."""
    try:
        return data.load("test", progress=progress)
    except NoSuchSplit as error:
        progress.say(f"without test data: {error}")
        return None
