"""Tests of Dataset validation, its points and the digits data."""

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
def test_inconsistent_arrays_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        Dataset(*arguments)


def test_an_unknown_split_is_rejected_with_a_suggestion():
    with pytest.raises(ValueError, match=r"split must be one of .* \(did you mean 'train'\?\)"):
        load(DigitsData(), "trian")


@pytest.mark.parametrize(
    "source", [DigitsData(), ToyData(), IdxData(), ArrayData("here"), Cifar10Data("here")]
)
def test_data_sources_implement_the_protocol_and_are_hashable(source):
    assert isinstance(source, DataSource)
    assert hash(source) == hash(type(source)(**vars(source)))


def test_points_returns_a_new_array():
    dataset = Dataset(x=X.copy())
    dataset.points()[:] = 1
    np.testing.assert_array_equal(dataset.x, X)


def test_float16_points_are_returned_as_float32():
    assert Dataset(x=X.astype(np.float16)).points(slice(0, 1)).dtype == np.float32


def test_digits_are_complete_with_values_in_minus_one_to_one():
    train, test = load(DigitsData()), load(DigitsData(), "test")
    assert (len(train), len(test)) == (1442, 355)
    assert train.event_shape == (8, 8, 1)
    assert (train.x.min(), train.x.max()) == (-1, 1)
    # The images have 17 evenly spaced gray values.
    np.testing.assert_array_equal(np.unique(train.x), np.linspace(-1, 1, 17, dtype=np.float32))


def test_digits_split_is_stratified_and_deterministic():
    train, test = load(DigitsData()), load(DigitsData(), "test")
    assert train.labels is not None
    assert test.labels is not None
    class_counts = np.stack([np.bincount(train.labels), np.bincount(test.labels)])
    assert (np.abs(class_counts[1] / class_counts.sum(axis=0) - 0.2) < 0.005).all()
    np.testing.assert_array_equal(load(DigitsData(), "test").x, test.x)


def test_digits_splits_are_disjoint():
    # The data contain no duplicates, so equal images would be the same example.
    images = np.concatenate(
        [load(DigitsData(), split).x.reshape(-1, 64) for split in ("train", "test")]
    )
    assert len(np.unique(images, axis=0)) == 1797
