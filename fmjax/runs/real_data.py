"""The test data of a run, and the classifier trained on its data."""

import dataclasses

from fmjax._arrays import is_image
from fmjax._progress import Progress, Silent
from fmjax.data import CaptionedClasses, Dataset, DataSource, IdxData, NoSuchSplit
from fmjax.metrics import ImageClassifier, trained_classifier

MAX_REAL = 60_000  # Maximum number of real examples that samples are compared with.


def data_classifier(data: DataSource, *, progress: Progress = Silent()) -> ImageClassifier | None:
    """The classifier of a dataset, trained once and cached.

    Returns:
        The classifier, or None if the data have no classes, are not images or have no test split.
    """
    if isinstance(data, CaptionedClasses):
        data = data.data
    if isinstance(data, IdxData):  # One classifier of all classes serves every selection.
        data = dataclasses.replace(data, classes=())
    train = data.load("train", progress=progress)
    if train.num_classes is None or not is_image(train.event_shape):
        return None
    test = test_split(data, progress)
    return None if test is None else trained_classifier(train, test, progress=progress)


def test_split(data: DataSource, progress: Progress) -> Dataset | None:
    """Load the test data; return None and report it if there is no test split."""
    try:
        return data.load("test", progress=progress)
    except NoSuchSplit as error:
        progress.say(f"no test data: {error}")
        return None
