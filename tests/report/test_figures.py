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


def lines(figure: Figure) -> dict:
    return {line.get_label(): line for line in figure.axes[0].get_lines()}


@pytest.mark.parametrize(("cost", "of"), [("nfe", "nfe_mean"), ("seconds", "seconds")])
def test_the_error_figure_holds_the_rows_numbers(cost, of):
    drawn = lines(plot_error(example(), cost=cost))
    assert set(drawn) == {"Euler", "RK4", "Tsit5"}
    for solver, runs in example().curves().items():
        np.testing.assert_array_equal(drawn[solver].get_xdata(), [getattr(r, of) for r in runs])
        np.testing.assert_array_equal(drawn[solver].get_ydata(), [r.rmse_worst for r in runs])


def test_fixed_and_adaptive_differ_in_line_and_marker_as_well_as_in_hue():
    drawn = lines(plot_error(example()))
    assert drawn["Euler"].get_linestyle() != drawn["Tsit5"].get_linestyle()
    assert drawn["Euler"].get_markerfacecolor() == "#ffffff"
    assert drawn["Tsit5"].get_markerfacecolor() != "#ffffff"


def test_runs_that_failed_or_are_exact_have_no_point_on_a_logarithmic_axis():
    rows = comparison(
        run("Euler", 1, 1, 0.5, 0.1),
        run("Euler", 2, 2, math.inf, 0.1),
        run("Euler", 4, 4, 0.0, 0.1),
        run("Euler", 8, 8, 0.1, 0.1, succeeded=0.5),
        run("RK4", 8, 8, math.inf, 0.1),
    )
    drawn = lines(plot_error(rows))
    assert set(drawn) == {"Euler"}
    np.testing.assert_array_equal(drawn["Euler"].get_ydata(), [0.5])


def test_the_error_figure_of_no_runs_is_drawn():
    assert png_bytes(plot_error(comparison())).startswith(b"\x89PNG")


def test_the_metric_figure_holds_the_rows_the_floor_and_the_reference():
    figure = plot_metric(example(), "sliced Wasserstein", theme=DARK)
    drawn = lines(figure)
    for solver, runs in example().curves().items():
        wanted = [r.metrics["sliced Wasserstein"] for r in runs]
        np.testing.assert_array_equal(drawn[solver].get_ydata(), wanted)
    level = {line.get_gid(): line.get_ydata()[0] for line in figure.axes[0].get_lines()}
    assert (level["floor"], level["exact"]) == (0.03, 0.05)


def test_the_step_figure_holds_every_step_and_its_density():
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


def test_the_loss_figure_holds_the_loss_as_logged():
    drawn = lines(plot_loss([10, 20, 30], [3.0, 2.0, 1.0]))
    np.testing.assert_array_equal(drawn["as logged"].get_ydata(), [3.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="losses must have one entry for each of 2 steps, got 1"):
        plot_loss([1, 2], [1.0])


def test_the_running_mean_leaves_a_straight_line_straight_up_to_its_ends():
    line = np.arange(11.0)
    np.testing.assert_allclose(running_mean(line, 3), line, atol=1e-12)
    np.testing.assert_allclose(running_mean(np.array([0.0, 3.0, 0.0]), 1), [0.0, 1.0, 0.0])


def test_the_scatter_shows_samples_beside_data_on_equal_limits():
    samples, data = np.zeros((5, 2)), np.ones((7, 2))
    left, right = plot_points(samples, data).axes
    np.testing.assert_array_equal(left.collections[0].get_offsets(), samples)
    np.testing.assert_array_equal(right.collections[0].get_offsets(), data)
    assert left.get_xlim() == right.get_xlim()
    with pytest.raises(ValueError, match=r"data must have shape \[n, 2\], got \(5, 3\)"):
        plot_points(samples, np.zeros((5, 3)))


def test_samples_without_data_have_the_figure_to_themselves():
    (panel,) = plot_points(np.zeros((5, 2)), np.empty((0, 2))).axes
    assert panel.get_title("left") == "Samples (5)"


def test_a_stray_sample_does_not_zoom_the_scatter_out():
    data = np.random.default_rng(0).uniform(-1, 1, (4000, 2))
    stray = np.concatenate([data, [[1e6, np.nan], [1e6, 0.0]]])
    assert plot_points(stray, data).axes[0].get_xlim()[1] < 2


def test_a_grid_enlarges_each_pixel_by_a_whole_factor_without_smoothing():
    images = np.linspace(-1, 1, 6 * 64).reshape(6, 8, 8, 1)
    grid = np.asarray(image_grid(images, 3, gap=4))
    assert grid.shape == (4 + 2 * 60, 4 + 3 * 60, 3)
    second_of_second_row = grid[64 : 64 + 56 : 7, 64 : 64 + 56 : 7, 0]
    np.testing.assert_array_equal(second_of_second_row, np.rint((images[4, ..., 0] + 1) * 127.5))
    np.testing.assert_array_equal(grid[4:11, 4:11], 0)


def test_row_labels_stand_in_a_margin_of_their_own():
    images = np.ones((4, 8, 8, 3))
    bare, labelled = image_grid(images, 2), image_grid(images, 2, row_labels=("ankle boot", "bag"))
    assert labelled.width > bare.width
    assert labelled.height == bare.height
    margin = np.asarray(labelled)[:, : labelled.width - bare.width]
    assert (margin < 128).any()


def test_column_labels_stand_above_the_images():
    images = np.ones((4, 8, 8, 3))
    bare, titled = image_grid(images, 2), image_grid(images, 2, column_labels=("noise", "data"))
    assert titled.width == bare.width
    above = titled.height - bare.height
    assert above > 0
    assert (np.asarray(titled)[:above] < 128).any()
    np.testing.assert_array_equal(np.asarray(titled)[above:][4:], np.asarray(bare)[4:])


def test_an_image_of_nans_alone_leaves_its_cell_blank():
    images = np.full((2, 8, 8, 1), -1.0)
    images[1] = np.nan
    pixels = np.asarray(image_grid(images, 2, gap=4))
    assert (pixels[:, 4 + 56 :] == 255).all()
    assert (pixels[4:60, 4:60] == 0).all()


def test_values_out_of_range_are_black_or_white_and_nan_is_black():
    """The last value is the largest of float32, whose multiples are infinite."""
    values = np.array([-np.inf, -2.0, -1.0, np.nan, 1.0, 2.0, np.inf, 3.4e38], np.float32)
    pixels = np.asarray(image_grid(values.reshape(1, 2, 4, 1), 1, gap=0))
    factor = pixels.shape[0] // 2
    levels = pixels[factor // 2 :: factor, factor // 2 :: factor, 0]
    np.testing.assert_array_equal(levels.ravel(), [0, 0, 0, 0, 255, 255, 255, 255])


def test_what_is_not_a_grid_of_images_is_refused():
    with pytest.raises(ValueError, match=r"images must have shape .*, got \(4, 8, 8\)"):
        image_grid(np.zeros((4, 8, 8)), 2)
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        image_grid(np.zeros((4, 8, 8, 1)), 0)
    with pytest.raises(ValueError, match="row_labels must have one entry for each of 2 rows"):
        image_grid(np.zeros((4, 8, 8, 1)), 2, row_labels=("a",))
    with pytest.raises(ValueError, match="column_labels must have one entry for each of 2"):
        image_grid(np.zeros((4, 8, 8, 1)), 2, column_labels=("a",))


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    save_png(png_bytes(plot_loss([1, 2], [1.0, 0.5])), tmp_path / "deep" / "loss.png")
    content = (tmp_path / "deep" / "loss.png").read_bytes()
    assert content == png_bytes(plot_loss([1, 2], [1.0, 0.5]))
    assert Image.open(io.BytesIO(image_bytes(image_grid(np.zeros((1, 8, 8, 1)), 1)))).size[0] > 56
