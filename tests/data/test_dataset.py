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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": np.ones(2)}, r"weight must be real numbers of shape \(3,\), one per example"),
        ({"weight": np.array([1, np.nan, 1])}, "weight must hold finite numbers, got nan in exam"),
        ({"weight": np.array([1, -1, 1])}, "weight must be at least 0, some above 0, got -1 to 1"),
        ({"weight": np.zeros(3)}, "weight must be at least 0, some above 0, got 0.0 to 0.0"),
        ({"mask": np.ones((3, 2))}, r"mask must be bool of the first axes of \(3, 2\), each of"),
        ({"mask": np.ones((3, 3), bool)}, r"mask must be bool of .*, got bool of shape \(3, 3\)"),
    ],
)
def test_unsuitable_weights_and_masks_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        Dataset(X, **arguments)


def test_examples_have_their_weights_and_masks():
    mask = np.array([[True, False], [True, True], [False, True]])
    dataset = Dataset(X, np.arange(3), 3, weight=np.array([1, 2, 3]), mask=mask)
    for examples in (dataset, dataset.unconditional()):
        batch = examples.examples(np.array([2, 0]))
        assert batch.weight.dtype == np.float32
        np.testing.assert_array_equal(batch.weight, [3, 1])
        np.testing.assert_array_equal(batch.mask, mask[[2, 0]])


class Changing:
    """Rows that have another shape from the second access on."""

    shape, dtype, ndim, num_reads = (3, 2), np.dtype(np.float32), 2, 0

    def __len__(self):
        return 3

    def __getitem__(self, indices):
        self.num_reads += 1
        return X[indices] if self.num_reads == 1 else X[indices, :1]


def test_rows_of_another_shape_are_rejected():
    dataset = Dataset(Changing())
    assert dataset.points(np.array([0, 1])).shape == (2, 2)
    for indices, num in ((np.array([0, 1]), 2), (slice(None), 3)):
        message = rf"x must return rows \({num}, 2\), got \({num}, 1\)"
        with pytest.raises(ValueError, match=message):
            dataset.points(indices)


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
