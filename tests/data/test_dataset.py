"""What a set of examples refuses, and what it delivers."""

import numpy as np
import pytest

from fmjax.data import Dataset, DataSource, DigitsData, load
from fmjax.data.sources.arrays import ArrayData
from fmjax.data.sources.cifar10 import Cifar10Data
from fmjax.data.sources.mnist import IdxData
from fmjax.data.sources.toys import ToyData

X = np.zeros((3, 2), dtype=np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((3, 2), dtype=np.int64),), "x must be uint8 or floating point, got int64"),
        ((np.zeros(3),), r"x must be \[num_examples, \*event\], got shape \(3,\)"),
        ((np.zeros((0, 2)),), r"x must hold at least one example, got shape \(0, 2\)"),
        ((X, np.zeros(3, dtype=np.int32)), "labels must be given together with num_classes"),
        ((X, np.zeros(2, dtype=np.int32), 1), r"labels must be 3 integers, got int32 of .*\(2,\)"),
        ((X, np.zeros(3), 1), "labels must be 3 integers, got float64"),
        ((X, np.array([0, 1, 3]), 3), r"labels must lie in \[0, 3\), got 0 to 3"),
        ((X, np.array([0, -1, 2]), 3), r"labels must lie in \[0, 3\), got -1 to 2"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Dataset(*arguments)


def test_an_unknown_split_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match=r"split must be one of .* \(did you mean 'train'\?\)"):
        load(DigitsData(), "trian")


@pytest.mark.parametrize(
    "source", [DigitsData(), ToyData(), IdxData(), ArrayData("here"), Cifar10Data("here")]
)
def test_every_source_keeps_the_promise_and_is_hashable(source):
    assert isinstance(source, DataSource)
    assert hash(source) == hash(type(source)(**vars(source)))


def test_points_are_new_arrays():
    dataset = Dataset(x=X.copy())
    dataset.points()[:] = 1
    np.testing.assert_array_equal(dataset.x, X)


def test_half_precision_is_delivered_as_float32():
    assert Dataset(x=X.astype(np.float16)).points(slice(0, 1)).dtype == np.float32


def test_digits_are_all_there_and_lie_between_minus_one_and_one():
    train, test = load(DigitsData()), load(DigitsData(), "test")
    assert (len(train), len(test)) == (1442, 355)
    assert train.event_shape == (8, 8, 1)
    assert (train.x.min(), train.x.max()) == (-1, 1)
    # 17 grey values, evenly spaced.
    np.testing.assert_array_equal(np.unique(train.x), np.linspace(-1, 1, 17, dtype=np.float32))


def test_digits_are_split_alike_in_every_class_and_every_time():
    train, test = load(DigitsData()), load(DigitsData(), "test")
    assert train.labels is not None
    assert test.labels is not None
    of_class = np.stack([np.bincount(train.labels), np.bincount(test.labels)])
    assert (np.abs(of_class[1] / of_class.sum(axis=0) - 0.2) < 0.005).all()
    np.testing.assert_array_equal(load(DigitsData(), "test").x, test.x)


def test_no_digit_is_in_both_splits():
    # The set holds no two equal images, so equal images would be the same example.
    both = np.concatenate(
        [load(DigitsData(), split).x.reshape(-1, 64) for split in ("train", "test")]
    )
    assert len(np.unique(both, axis=0)) == 1797
