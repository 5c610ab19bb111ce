"""Precision and recall against values by hand, a plain loop, and known failure modes."""

import numpy as np
import pytest

from fmjax.metrics import precision_recall


def column(*values):
    return np.array(values, np.float32)[:, None]


def by_loop(points, manifold, k):
    """Equation 1 of arXiv:1904.06991 as it is written, one pair at a time."""
    covered = []
    for point in points:
        inside = False
        for center in manifold:
            radius = sorted(np.linalg.norm(manifold - center, axis=1))[k]
            inside = inside or np.linalg.norm(point - center) <= radius
        covered.append(inside)
    return np.mean(covered)


def test_points_on_a_line_are_counted_as_by_hand():
    # With k = 1 the real balls are [-1, 1], [0, 2], [1, 3], [2, 18]; the samples' have radius 1.
    real = column(0.0, 1.0, 2.0, 10.0)
    found = precision_recall(column(0.5, 1.5, 25.0, 26.0), real, num_neighbors=1)
    assert found.precision == 0.5  # The ball of the isolated point at 10 ends at 18.
    assert found.recall == 0.75  # The samples' balls are [-0.5, 1.5], [0.5, 2.5] and two far away.


def test_it_agrees_with_a_loop_over_pairs():
    generator = np.random.default_rng(0)
    x = (generator.standard_normal((60, 5)) + 100.0).astype(np.float32)
    y = (0.7 * generator.standard_normal((50, 5)) + 100.0).astype(np.float32)
    found = precision_recall(x, y, num_neighbors=3)
    assert found.precision == pytest.approx(by_loop(x, y, 3))
    assert found.recall == pytest.approx(by_loop(y, x, 3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_neighbours_are_those_of_a_loop_in_two_clusters_far_apart(dtype):
    generator = np.random.default_rng(3)
    side = 1e4 * (np.arange(40)[:, None] % 2)
    x, y = (1e-2 * generator.standard_normal((40, 3)) + side for _ in range(2))
    x, y = x.astype(dtype), y.astype(dtype)
    x[:8] = x[0]  # Eight copies, whose balls have radius 0 and contain their center.
    y[4] = x[0]
    found = precision_recall(x, y, num_neighbors=3)
    wide = x.astype(np.float64), y.astype(np.float64)
    assert found.precision == pytest.approx(by_loop(*wide, 3))
    assert found.recall == pytest.approx(by_loop(*wide[::-1], 3))


def test_rows_are_taken_in_blocks_without_a_seam():
    generator = np.random.default_rng(1)
    x, y = generator.standard_normal((2, 1500, 2))
    first, whole = precision_recall(x[:1024], y), precision_recall(x, y)
    second = precision_recall(x[1024:], y)
    shares = (1024 * first.precision + 476 * second.precision) / 1500
    assert whole.precision == pytest.approx(shares)


def test_narrow_samples_are_precise_and_lack_recall():
    generator = np.random.default_rng(2)
    real = generator.standard_normal((500, 4))
    narrow = precision_recall(0.2 * generator.standard_normal((500, 4)), real)
    wide = precision_recall(4.0 * generator.standard_normal((500, 4)), real)
    assert narrow.precision > 0.95
    assert narrow.recall < 0.1
    assert wide.precision < 0.3
    assert wide.recall > 0.8


def test_equal_sets_have_both_in_full():
    x = np.random.default_rng(3).standard_normal((20, 3))
    assert precision_recall(x, x) == (1.0, 1.0)


def test_sets_without_sense_are_refused():
    x = np.zeros((5, 2))
    with pytest.raises(ValueError, match="number of samples must be at least 4, got 3"):
        precision_recall(x[:3], x)
    with pytest.raises(ValueError, match="number of real must be at least 4, got 3"):
        precision_recall(x, x[:3])
    with pytest.raises(ValueError, match="samples must have 2 features, like real, got 3"):
        precision_recall(np.zeros((5, 3)), x)
    with pytest.raises(ValueError, match="num_neighbors must be at least 1, got 0"):
        precision_recall(x, x, num_neighbors=0)
