"""Tests of precision and recall against hand calculations, loops and known failure modes."""

import numpy as np
import pytest

from fmjax.metrics import precision_recall


def column(*values):
    return np.array(values, np.float32)[:, None]


def coverage_by_loop(points, manifold, k):
    """Return the mean of equation 1 of arXiv:1904.06991, computed by a loop over pairs."""
    covered = []
    for point in points:
        inside = False
        for center in manifold:
            radius = sorted(np.linalg.norm(manifold - center, axis=1))[k]
            inside = inside or np.linalg.norm(point - center) <= radius
        covered.append(inside)
    return np.mean(covered)


def test_points_on_line_match_hand_calculation():
    # For k = 1, the real balls are [-1, 1], [0, 2], [1, 3], [2, 18]; sample balls have radius 1.
    real = column(0.0, 1.0, 2.0, 10.0)
    result = precision_recall(column(0.5, 1.5, 25.0, 26.0), real, num_neighbors=1)
    assert result.precision == 0.5  # The ball of the isolated point at 10 ends at 18.
    # The sample balls are [-0.5, 1.5], [0.5, 2.5] and two distant ones.
    assert result.recall == 0.75


def test_result_matches_loop_over_pairs():
    generator = np.random.default_rng(0)
    x = (generator.standard_normal((60, 5)) + 100.0).astype(np.float32)
    y = (0.7 * generator.standard_normal((50, 5)) + 100.0).astype(np.float32)
    result = precision_recall(x, y, num_neighbors=3)
    assert result.precision == pytest.approx(coverage_by_loop(x, y, 3))
    assert result.recall == pytest.approx(coverage_by_loop(y, x, 3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distant_clusters_match_loop_over_pairs(dtype):
    generator = np.random.default_rng(3)
    offset = 1e4 * (np.arange(40)[:, None] % 2)
    x, y = (1e-2 * generator.standard_normal((40, 3)) + offset for _ in range(2))
    x, y = x.astype(dtype), y.astype(dtype)
    x[:8] = x[0]  # The balls of eight copies have radius 0 and contain their center.
    y[4] = x[0]
    result = precision_recall(x, y, num_neighbors=3)
    float64_sets = x.astype(np.float64), y.astype(np.float64)
    assert result.precision == pytest.approx(coverage_by_loop(*float64_sets, 3))
    assert result.recall == pytest.approx(coverage_by_loop(*float64_sets[::-1], 3))


def test_block_boundaries_do_not_change_precision():
    generator = np.random.default_rng(1)
    x, y = generator.standard_normal((2, 1500, 2))
    first, full = precision_recall(x[:1024], y), precision_recall(x, y)
    second = precision_recall(x[1024:], y)
    expected = (1024 * first.precision + 476 * second.precision) / 1500
    assert full.precision == pytest.approx(expected)


def test_narrow_samples_have_high_precision_and_low_recall():
    generator = np.random.default_rng(2)
    real = generator.standard_normal((500, 4))
    narrow = precision_recall(0.2 * generator.standard_normal((500, 4)), real)
    wide = precision_recall(4.0 * generator.standard_normal((500, 4)), real)
    assert narrow.precision > 0.95
    assert narrow.recall < 0.1
    assert wide.precision < 0.3
    assert wide.recall > 0.8


def test_equal_sets_have_precision_and_recall_one():
    x = np.random.default_rng(3).standard_normal((20, 3))
    assert precision_recall(x, x) == (1.0, 1.0)


def test_invalid_sets_are_refused():
    x = np.zeros((5, 2))
    with pytest.raises(ValueError, match="number of samples must be at least 4, got 3"):
        precision_recall(x[:3], x)
    with pytest.raises(ValueError, match="number of real must be at least 4, got 3"):
        precision_recall(x, x[:3])
    with pytest.raises(ValueError, match="samples must have 2 features, like real, got 3"):
        precision_recall(np.zeros((5, 3)), x)
    with pytest.raises(ValueError, match="num_neighbors must be at least 1, got 0"):
        precision_recall(x, x, num_neighbors=0)
