"""Tests of the figures of posteriors, and of their section on the page."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from scipy.stats import chi2

from fmjax.metrics import expected_coverage, rank_histogram
from fmjax.report.content import CornerPlot, PosteriorChecks, Report
from fmjax.report.page import write_report
from fmjax.report.posterior_plots import (
    density_levels,
    plot_corner,
    plot_coverage,
    plot_ranks,
    smooth_density,
)
from fmjax.report.style import DARK, LIGHT

NAMES = ("slope", "offset", "scale")


def normal(num, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((num, dim))


def histogram(points, edges):
    return np.histogram2d(points[:, 0], points[:, 1], bins=[edges, edges])[0]


def by_id(axes):
    artists = [*axes.get_lines(), *axes.patches, *axes.collections]
    return {artist.get_gid(): artist for artist in artists if artist.get_gid()}


def test_corner_has_marginals_pairs_names_and_true_values():
    samples, true = normal(500, 3) * [1.0, 2.0, 3.0], np.array([0.5, -1.0, 9.0])
    figure = plot_corner(CornerPlot(samples, true, names=NAMES))
    figure.draw_without_rendering()
    # Row by row, without the panels above the diagonal.
    assert len(figure.axes) == 6
    assert [axes.get_xlabel() for axes in figure.axes[3:]] == list(NAMES)
    assert [axes.get_ylabel() for axes in figure.axes] == ["", NAMES[1], "", NAMES[2], "", ""]
    for axes, index in ((figure.axes[0], 0), (figure.axes[2], 1), (figure.axes[5], 2)):
        heights, edges, _ = by_id(axes)["samples"].get_data()
        inside = (samples[:, index] >= edges[0]) & (samples[:, index] <= edges[-1])
        assert np.sum(heights * np.diff(edges)) == pytest.approx(inside.mean())
        np.testing.assert_array_equal(by_id(axes)["true"].get_xdata(), true[index])
        assert edges[0] < true[index] < edges[-1]
    pair = figure.axes[3]
    assert pair.get_xlim() == figure.axes[0].get_xlim()
    (point,) = [line for line in pair.get_lines() if line.get_marker() == "s"]
    np.testing.assert_array_equal(point.get_xydata(), [[0.5, 9.0]])


def test_corner_outlines_reference_and_ignores_infinite_rows():
    samples = np.concatenate([normal(400, 2), [[np.nan, 0.0], [0.0, np.inf]]])
    figure = plot_corner(CornerPlot(samples, reference=3 + normal(300, 2, 1)), theme=DARK)
    assert figure.get_facecolor() == to_rgba(DARK.background)
    assert set(by_id(figure.axes[0])) == {"samples", "reference"}
    low, high = figure.axes[1].get_xlim()
    assert low < -2 < 5 < high < 10
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["samples (400)", "exact posterior (300)"]


def test_corner_of_constant_parameter_is_drawn():
    samples = np.stack([np.ones(50), normal(50, 1)[:, 0]], axis=1)
    low, high = plot_corner(CornerPlot(samples)).axes[0].get_xlim()
    assert low < 1 < high


def test_density_levels_enclose_their_share():
    density = np.array([[0.0, 1.0], [2.0, 7.0]])
    assert density_levels(density, (0.5, 0.9)) == [2.0]
    assert density_levels(density, (0.95,)) == [1.0]
    assert density_levels(np.zeros((2, 2)), (0.5,)) == []


def test_regions_of_gaussian_have_area_of_closed_form():
    """The region with probability p of N(0, I) is a disk with squared radius chi2.ppf(p)."""
    edges = np.linspace(-5, 5, 97)
    density = smooth_density(histogram(normal(20_000, 2), edges))
    cell = (edges[1] - edges[0]) ** 2
    for mass, level in zip((0.9, 0.5), density_levels(density, (0.5, 0.9)), strict=True):
        area = np.sum(density >= level) * cell
        # Smoothing with variance h^2 inflates the area by 1 + h^2, with h about n^(-1/6) = .19.
        assert area == pytest.approx(np.pi * chi2.ppf(mass, 2), rel=0.08)


def test_smoothing_keeps_thin_structures():
    """On a ring of thickness 0.03 the kernel is narrower than for a Gaussian of equal extent."""
    edges = np.linspace(-2, 2, 97)
    angles, radii = 2 * np.pi * np.random.default_rng(0).random(4000), normal(4000, 1)[:, 0]
    radii = 1 + 0.03 * radii
    ring = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    density = smooth_density(histogram(ring, edges))
    centers = (edges[1:] + edges[:-1]) / 2
    radius = np.hypot(*np.meshgrid(centers, centers))
    assert density[np.abs(radius - 1) < 0.15].sum() > 0.98 * density.sum()


def test_rank_figure_shows_counts_band_and_p_values():
    ranks = np.random.default_rng(0).integers(0, 20, (400, 4))
    ranks[:, 1] //= 2
    result = rank_histogram(ranks, 19)
    figure = plot_ranks(result, names=[*NAMES, "width"])
    assert len(figure.axes) == 4
    for i, axes in enumerate(figure.axes):
        artists = by_id(axes)
        np.testing.assert_array_equal(artists["counts"].get_data().values, result.counts[i])
        np.testing.assert_array_equal(artists["band"].get_data().values, result.high)
        np.testing.assert_array_equal(artists["band"].get_data().baseline, result.low)
        np.testing.assert_array_equal(artists["expected"].get_data().values, 20.0)
    texts = [axes.texts[0].get_text() for axes in figure.axes]
    assert texts[1] == "p < 0.001"
    assert texts[0] == f"p = {result.p_values[0]:.2g}"


def test_coverage_figure_shows_curves_and_band():
    draws = normal(50, 99)
    curves = {
        "exact": expected_coverage(normal(50, 1, 1)[:, 0], draws),
        "narrow": expected_coverage(normal(50, 1, 1)[:, 0] - 1, draws),
    }
    (axes,) = plot_coverage(curves, theme=LIGHT).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    for name, curve in curves.items():
        np.testing.assert_array_equal(lines[name].get_xdata(), curve.levels)
        np.testing.assert_array_equal(lines[name].get_ydata(), curve.coverage)
    vertices = by_id(axes)["band"].get_paths()[0].vertices
    assert set(curves["exact"].high) <= set(vertices[:, 1])


@pytest.mark.slow
def test_page_has_section_of_posterior(tmp_path):
    draws = normal(40, 9)
    checks = PosteriorChecks(
        corners=(CornerPlot(normal(100, 2), caption="Seen."), CornerPlot(normal(100, 2))),
        ranks=rank_histogram(np.zeros((40, 2), int), 9),
        coverages={"highest density": expected_coverage(np.zeros(40), draws)},
    )
    page = write_report(Report("run", posterior=checks), tmp_path)
    html = page.read_text()
    assert "<h2>Posterior</h2>" in html
    assert "Seen." in html
    assert "Ranks in 40 simulations" in html
    names = {file.name for file in (tmp_path / "figures").iterdir()}
    assert names == {"corner-1.png", "corner-2.png", "ranks.png", "coverage.png"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: plot_corner(CornerPlot(np.zeros(3))),
            r"samples must have shape \[n, parameters\]",
        ),
        (lambda: plot_corner(CornerPlot(np.zeros((5, 13)))), "at most 12 parameters, got 13"),
        (lambda: plot_corner(CornerPlot(np.full((3, 2), np.nan))), "hold at least one finite"),
        (
            lambda: plot_corner(CornerPlot(normal(5, 2), reference=normal(5, 3))),
            "reference must have 2 parameters, like samples, got 3",
        ),
        (
            lambda: plot_corner(CornerPlot(normal(5, 2), np.zeros(3))),
            r"true must have shape \(2,\), got \(3,\)",
        ),
        (
            lambda: plot_corner(CornerPlot(normal(5, 2), names=("a",))),
            "names must have one entry for each of 2 parameters, got 1",
        ),
        (lambda: plot_coverage({}), "coverages must hold at least one curve, got none"),
    ],
)
def test_invalid_figures_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
