"""Tests of the mean and standard deviation of a training split."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from fmjax._arrays import Text
from fmjax.data import (
    Dataset,
    Moments,
    Standardization,
    StandardizedDataset,
    fit_standardization,
    read_standardization,
)


def data(shape, *, mean=7.0, std=10.0, num=3000):
    return (mean + std * np.random.default_rng(0).standard_normal((num, *shape))).astype(np.float32)


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 2, 3)])
def test_moments_are_those_of_each_index_of_the_last_axis(shape):
    x = data(shape) * np.float32([1, 2, 1e-4]) + np.float32([0, 500, 0])
    moments = fit_standardization(Dataset(x)).moments["x"]
    flat = x.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(moments.mean, flat.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.std, flat.std(axis=0), rtol=1e-10)


def test_standardized_examples_have_mean_0_and_std_1_and_are_restored():
    x = data((4, 3))
    dataset = Dataset(x, np.arange(len(x)) % 5, 5)
    standardization = fit_standardization(dataset)
    batch = StandardizedDataset(dataset, standardization).examples(slice(None))
    flat = batch.x1.reshape(-1, 3)
    np.testing.assert_allclose(flat.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(flat.std(axis=0), 1, atol=1e-5)
    assert batch.x1.dtype == np.float32
    np.testing.assert_array_equal(batch.cond, dataset.labels)
    np.testing.assert_allclose(standardization.restore_points(batch.x1), x, atol=1e-5)
    np.testing.assert_allclose(standardization.points(jnp.asarray(x)), batch.x1, atol=1e-6)


def test_a_constant_element_is_shifted_to_zero():
    x = data((2,))
    x[:, 1] = 0.1
    standardization = fit_standardization(Dataset(x))
    assert standardization.moments["x"].std[1] == 1.0
    points = standardization.points(x)
    np.testing.assert_array_equal(points[:, 1], 0.0)
    np.testing.assert_array_equal(standardization.restore_points(points)[:, 1], np.float32(0.1))


def test_pixels_are_standardized_in_their_range_of_minus_one_to_one():
    x = np.random.default_rng(0).integers(0, 256, (64, 2, 2, 1), dtype=np.uint8)
    moments = fit_standardization(Dataset(x)).moments["x"]
    np.testing.assert_allclose(moments.mean, (x / 127.5 - 1).mean(), atol=1e-6)


def test_log_volume_is_the_sum_over_all_numbers_of_an_example():
    standardization = Standardization({"x": Moments((0.0, 1.0), (10.0, 0.5))})
    assert standardization.log_volume((2,)) == pytest.approx(np.log(10.0) + np.log(0.5))
    assert standardization.log_volume((3, 4, 2)) == pytest.approx(12 * np.log(5.0))
    assert Standardization().log_volume((2,)) == 0.0


def test_files_keep_every_digit(tmp_path):
    standardization = fit_standardization(Dataset(data((3,))))
    file = tmp_path / "standardization.json"
    file.write_text(json.dumps(standardization.to_json()))
    assert read_standardization(file) == standardization


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{}", "must hold the moments of x"),
        ('{"x": {"mean": [0.0, 1.0], "std": [1.0]}}', "x must hold mean and std of equal length"),
        ('{"x": {"mean": [0.0], "std": [0.0]}}', "a number above 0"),
    ],
)
def test_invalid_files_are_refused(tmp_path, document, message):
    file = tmp_path / "standardization.json"
    file.write_text(document)
    with pytest.raises(ValueError, match=message):
        read_standardization(file)


def test_float_conditions_are_standardized_by_name_and_integers_are_kept():
    moments = {"x": Moments((0.0,), (1.0,)), "cond_a": Moments((1.0, 2.0), (2.0, 4.0))}
    cond = {"a": np.float32([[3.0, 6.0]]), "b": np.int32([7])}
    standardized = Standardization(moments).conds(cond)
    np.testing.assert_array_equal(standardized["a"], [[1.0, 1.0]])
    assert standardized["b"] is cond["b"]
    single = Standardization({"cond": Moments((1.0,), (2.0,))}).conds(np.float32([3.0, 5.0]))
    np.testing.assert_array_equal(single, [1.0, 2.0])
    assert Standardization().conds(None) is None


def test_data_that_cannot_be_standardized_are_refused():
    with pytest.raises(ValueError, match="at least 2 training examples to be standardized, got 1"):
        fit_standardization(Dataset(data((3,), num=1)))
    x = data((3,), num=2000)
    x[1500, 1] = np.nan
    with pytest.raises(ValueError, match="x must hold finite numbers, got nan in example 1500"):
        fit_standardization(Dataset(x))
    text = Text(np.zeros((2, 3, 4), np.float32), np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match="standardize must be off for encoded text"):
        fit_standardization(Dataset(data((3,), num=2), text=text))
