"""Tests of the toy distributions against their definitions."""

import numpy as np
import pytest

from fmjax.data import ToyData, load

NAMES = ("moons", "eight_gaussians", "checkerboard", "pinwheel", "spirals")
NUM = 40_000


def sample_toy(name, split="train", **settings):
    return load(ToyData(name, num_examples=NUM, conditional=True, **settings), split)


@pytest.mark.parametrize("name", NAMES)
def test_toys_are_centered_with_scale_near_one(name):
    x = sample_toy(name).x
    assert x.shape == (NUM, 2)
    # The standard error of the mean is 1.5 / 200; the mean of the moons is not exactly zero.
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=0.1)
    assert (x.std(axis=0) > 0.5).all()
    assert (np.quantile(np.abs(x), 0.98, axis=0) < 2.4).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_components_are_equally_likely(name):
    dataset = sample_toy(name)
    frequencies = np.bincount(dataset.labels, minlength=dataset.num_classes) / NUM
    # The standard error of a frequency is below sqrt(.25 / 40000) = 0.0025.
    np.testing.assert_allclose(frequencies, 1 / dataset.num_classes, atol=0.0125)


@pytest.mark.parametrize("name", NAMES)
def test_samples_depend_only_on_the_seed_and_split(name):
    first, repeated, other_seed = sample_toy(name), sample_toy(name), sample_toy(name, seed=1)
    np.testing.assert_array_equal(first.x, repeated.x)
    for different in (other_seed, sample_toy(name, split="test")):
        assert not np.isin(different.x[:, 0], first.x[:, 0]).all()


def test_eight_gaussians_have_the_stated_centers_and_width():
    dataset = sample_toy("eight_gaussians")
    for k in range(8):
        x = dataset.x[dataset.labels == k]
        center = 2 * np.array([np.cos(k * np.pi / 4), np.sin(k * np.pi / 4)])
        # The standard errors of about 5,000 examples each are .15 / 70 and .15 / 100.
        np.testing.assert_allclose(x.mean(axis=0), center, atol=0.01)
        np.testing.assert_allclose(x.std(axis=0), 0.15, atol=0.0075)


def test_moons_are_half_circles_of_the_stated_radius():
    dataset = sample_toy("moons")
    for label, center in ((0, [-0.6, -0.3]), (1, [0.6, 0.3])):
        radius = np.linalg.norm(dataset.x[dataset.labels == label] - np.array(center), axis=1)
        # Noise of .1 increases the mean radius by .1^2 / (2 * 1.2) = .004.
        assert abs(radius.mean() - 1.204) < 0.005
        assert abs(radius.std() - 0.1) < 0.005


def test_checkerboard_fills_the_squares_of_one_color():
    dataset = sample_toy("checkerboard")
    square = np.floor(dataset.x).astype(int) + 2
    assert (square.sum(axis=1) % 2 == 0).all()
    assert len(np.unique(square, axis=0)) == 8
    for label in range(8):
        assert len(np.unique(square[dataset.labels == label], axis=0)) == 1


def test_pinwheel_arms_are_rotations_of_one_arm():
    dataset = sample_toy("pinwheel")
    angle = -2 * np.pi * np.array(dataset.labels) / 5
    rotation = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1)
    x = np.einsum("nij,nj->ni", rotation.reshape(-1, 2, 2), dataset.x)
    means = np.stack([x[dataset.labels == k].mean(axis=0) for k in range(5)])
    # The standard error of about 8,000 examples per arm, each within .8, is below .01.
    np.testing.assert_allclose(means, np.broadcast_to(means[0], (5, 2)), atol=0.05)
    assert abs(np.linalg.norm(x, axis=1).mean() - 1.2) < 0.02


def test_spirals_deviate_from_their_arms_by_the_stated_noise():
    dataset = sample_toy("spirals")
    angle = np.linspace(0, 3 * np.pi, 2000)
    for label in range(2):
        rotated = angle + np.pi * label
        arm = (2 * angle / (3 * np.pi))[:, None] * np.stack([np.cos(rotated), np.sin(rotated)], 1)
        x = dataset.x[dataset.labels == label][:2000]
        distance = np.linalg.norm(x[:, None] - arm, axis=2).min(axis=1)
        # The noise normal to the arm is a Gaussian of .06; at the ends it has two dimensions.
        assert abs(np.sqrt(np.mean(distance**2)) - 0.06) < 0.005


def test_toys_are_unconditional_by_default():
    dataset = load(ToyData("moons", num_examples=5))
    assert dataset.labels is None
    assert dataset.num_classes is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "moon"}, r"data.name must be one of .*did you mean 'moons'"),
        ({"num_examples": 0}, "data.num_examples must be at least 1, got 0"),
        ({"seed": -1}, r"data.seed must lie in \[0, 2\*\*63\), got -1"),
    ],
)
def test_invalid_settings_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        ToyData(**settings)
