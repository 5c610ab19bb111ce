"""Tests of the figures and image grids of the report."""

import io
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fmjax.report.images import image_bytes, image_grid
from fmjax.report.plots import plot_loss, plot_points, running_mean
from fmjax.report.solver_plots import plot_error, plot_metric, plot_steps
from fmjax.report.style import DARK, png_bytes, save_png
from tests.report.made_up import comparison, example, run


def lines_by_label(figure: Figure) -> dict:
    return {line.get_label(): line for line in figure.axes[0].get_lines()}


@pytest.mark.parametrize(("cost", "field"), [("nfe", "nfe_mean"), ("seconds", "seconds")])
def test_error_figure_plots_values_of_runs(cost, field):
    lines = lines_by_label(plot_error(example(), cost=cost))
    assert set(lines) == {"Euler", "RK4", "Tsit5"}
    for solver, runs in example().curves().items():
        np.testing.assert_array_equal(lines[solver].get_xdata(), [getattr(r, field) for r in runs])
        np.testing.assert_array_equal(lines[solver].get_ydata(), [r.rmse_worst for r in runs])


def test_fixed_and_adaptive_differ_in_line_and_marker():
    lines = lines_by_label(plot_error(example()))
    assert lines["Euler"].get_linestyle() != lines["Tsit5"].get_linestyle()
    assert lines["Euler"].get_markerfacecolor() == "#ffffff"
    assert lines["Tsit5"].get_markerfacecolor() != "#ffffff"


def test_failed_and_exact_runs_are_omitted_from_log_axis():
    data = comparison(
        run("Euler", 1, 1, 0.5, 0.1),
        run("Euler", 2, 2, math.inf, 0.1),
        run("Euler", 4, 4, 0.0, 0.1),
        run("Euler", 8, 8, 0.1, 0.1, succeeded=0.5),
        run("RK4", 8, 8, math.inf, 0.1),
    )
    lines = lines_by_label(plot_error(data))
    assert set(lines) == {"Euler"}
    np.testing.assert_array_equal(lines["Euler"].get_ydata(), [0.5])


def test_error_figure_without_runs_is_rendered():
    assert png_bytes(plot_error(comparison())).startswith(b"\x89PNG")


def test_metric_figure_contains_runs_floor_and_reference():
    figure = plot_metric(example(), "sliced Wasserstein", theme=DARK)
    lines = lines_by_label(figure)
    for solver, runs in example().curves().items():
        expected = [r.metrics["sliced Wasserstein"] for r in runs]
        np.testing.assert_array_equal(lines[solver].get_ydata(), expected)
    level = {line.get_gid(): line.get_ydata()[0] for line in figure.axes[0].get_lines()}
    assert (level["floor"], level["exact"]) == (0.03, 0.05)


def test_step_figure_contains_every_step_and_density():
    density, rug = plot_steps(example()).axes
    heights, edges, _ = density.patches[0].get_data()
    np.testing.assert_array_equal(edges, [0.0, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(heights, [4.0, 4.0, 2.0])
    ticks = [len(collection.get_segments()) for collection in rug.collections]
    assert sorted(ticks) == [3, 4]


def test_unknown_costs_and_metrics_are_refused():
    with pytest.raises(ValueError, match="cost must be one of nfe, seconds, got 'money'"):
        plot_error(example(), cost="money")
    with pytest.raises(ValueError, match="name must be one of sliced Wasserstein, got 'FID'"):
        plot_metric(example(), "FID")
    with pytest.raises(ValueError, match="comparison must contain step ends, got none"):
        plot_steps(comparison())


def test_loss_figure_plots_logged_losses():
    lines = lines_by_label(plot_loss([10, 20, 30], [3.0, 2.0, 1.0]))
    np.testing.assert_array_equal(lines["as logged"].get_ydata(), [3.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="losses must have one entry for each of 2 steps, got 1"):
        plot_loss([1, 2], [1.0])


def test_running_mean_preserves_straight_line():
    line = np.arange(11.0)
    np.testing.assert_allclose(running_mean(line, 3), line, atol=1e-12)
    np.testing.assert_allclose(running_mean(np.array([0.0, 3.0, 0.0]), 1), [0.0, 1.0, 0.0])


def test_scatter_shows_samples_and_data_with_equal_limits():
    samples, data = np.zeros((5, 2)), np.ones((7, 2))
    samples_axes, data_axes = plot_points(samples, data).axes
    np.testing.assert_array_equal(samples_axes.collections[0].get_offsets(), samples)
    np.testing.assert_array_equal(data_axes.collections[0].get_offsets(), data)
    assert samples_axes.get_xlim() == data_axes.get_xlim()
    with pytest.raises(ValueError, match=r"data must have shape \[n, 2\], got \(5, 3\)"):
        plot_points(samples, np.zeros((5, 3)))


def test_scatter_without_data_has_one_panel():
    (panel,) = plot_points(np.zeros((5, 2)), np.empty((0, 2))).axes
    assert panel.get_title("left") == "Samples (5)"


def test_scatter_limits_ignore_outliers():
    data = np.random.default_rng(0).uniform(-1, 1, (4000, 2))
    samples = np.concatenate([data, [[1e6, np.nan], [1e6, 0.0]]])
    assert plot_points(samples, data).axes[0].get_xlim()[1] < 2


def test_image_grid_enlarges_pixels_by_integer_factor():
    images = np.linspace(-1, 1, 6 * 64).reshape(6, 8, 8, 1)
    grid = np.asarray(image_grid(images, 3, gap=4))
    assert grid.shape == (4 + 2 * 60, 4 + 3 * 60, 3)
    second_of_second_row = grid[64 : 64 + 56 : 7, 64 : 64 + 56 : 7, 0]
    np.testing.assert_array_equal(second_of_second_row, np.rint((images[4, ..., 0] + 1) * 127.5))
    np.testing.assert_array_equal(grid[4:11, 4:11], 0)


def test_row_labels_are_in_left_margin():
    images = np.ones((4, 8, 8, 3))
    unlabeled, labeled = (
        image_grid(images, 2),
        image_grid(images, 2, row_labels=("ankle boot", "bag")),
    )
    assert labeled.width > unlabeled.width
    assert labeled.height == unlabeled.height
    margin = np.asarray(labeled)[:, : labeled.width - unlabeled.width]
    assert (margin < 128).any()


def test_column_labels_are_above_images():
    images = np.ones((4, 8, 8, 3))
    unlabeled, labeled = (
        image_grid(images, 2),
        image_grid(images, 2, column_labels=("noise", "data")),
    )
    assert labeled.width == unlabeled.width
    margin = labeled.height - unlabeled.height
    assert margin > 0
    assert (np.asarray(labeled)[:margin] < 128).any()
    np.testing.assert_array_equal(np.asarray(labeled)[margin:][4:], np.asarray(unlabeled)[4:])


def test_image_of_only_nan_is_blank():
    images = np.full((2, 8, 8, 1), -1.0)
    images[1] = np.nan
    pixels = np.asarray(image_grid(images, 2, gap=4))
    assert (pixels[:, 4 + 56 :] == 255).all()
    assert (pixels[4:60, 4:60] == 0).all()


def test_out_of_range_values_are_clipped_and_nan_is_black():
    """The last value is close to the float32 maximum, so its multiples are infinite."""
    values = np.array([-np.inf, -2.0, -1.0, np.nan, 1.0, 2.0, np.inf, 3.4e38], np.float32)
    pixels = np.asarray(image_grid(values.reshape(1, 2, 4, 1), 1, gap=0))
    factor = pixels.shape[0] // 2
    levels = pixels[factor // 2 :: factor, factor // 2 :: factor, 0]
    np.testing.assert_array_equal(levels.ravel(), [0, 0, 0, 0, 255, 255, 255, 255])


def test_invalid_image_grids_are_refused():
    with pytest.raises(ValueError, match=r"images must have shape .*, got \(4, 8, 8\)"):
        image_grid(np.zeros((4, 8, 8)), 2)
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        image_grid(np.zeros((4, 8, 8, 1)), 0)
    with pytest.raises(ValueError, match="row_labels must have one entry for each of 2 rows"):
        image_grid(np.zeros((4, 8, 8, 1)), 2, row_labels=("a",))
    with pytest.raises(ValueError, match="column_labels must have one entry for each of 2"):
        image_grid(np.zeros((4, 8, 8, 1)), 2, column_labels=("a",))


def test_figure_bytes_are_deterministic(tmp_path):
    save_png(png_bytes(plot_loss([1, 2], [1.0, 0.5])), tmp_path / "deep" / "loss.png")
    content = (tmp_path / "deep" / "loss.png").read_bytes()
    assert content == png_bytes(plot_loss([1, 2], [1.0, 0.5]))
    assert Image.open(io.BytesIO(image_bytes(image_grid(np.zeros((1, 8, 8, 1)), 1)))).size[0] > 56
