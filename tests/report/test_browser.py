"""Tests of the report page in Chromium: interaction, layout and network requests."""

import shutil

import numpy as np
import pytest

from fmjax.report.content import LossCurve, Report, SampleGrid
from fmjax.report.gallery import GalleryEntry
from fmjax.report.page import write_report
from fmjax.report.tables import Table
from tests.report.made_up import example

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


def report():
    gallery = [GalleryEntry.of(run, np.zeros((3, 4, 4, 1))) for run in example().runs]
    return Report(
        title="a_name_so_long_that_it_would_push_a_narrow_page_sideways_if_it_could",
        samples=SampleGrid(np.zeros((40, 8, 8, 1)), 20),
        comparison=example(),
        loss=LossCurve((1.0, 2.0, 3.0), (1.0, 0.5, 0.25)),
        gallery=tuple(gallery),
        tables=(Table("Likelihood", ("model", "bits"), [("b", 3.0), ("a", float("nan"))]),),
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return write_report(report(), tmp_path_factory.mktemp("run")).as_uri()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        # The sandbox needs rights that containers often lack; the page is trusted.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """Yield a function that opens the page; check afterwards for requests and errors."""
    contexts, requests, errors = [], [], []

    def open_with(**settings):
        context = browser.new_context(**{"viewport": {"width": 1000, "height": 800}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        return page

    yield open_with
    for context in contexts:
        context.close()
    assert [url for url in requests if not url.startswith(("data:", address))] == []
    assert errors == []


def curve(page, chart, name):
    return page.locator(f'[data-chart="{chart}"] g[data-series="{name}"]')


def center(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_pointer_shows_values_of_point(open_page):
    page = open_page()
    chart = page.locator('[data-chart="error"]')
    chart.scroll_into_view_if_needed()
    markers = curve(page, "error", "Euler").locator("path")
    assert markers.count() == 1 + 4  # The line and its four points.
    page.mouse.move(*center(markers.nth(3)))  # The point with 4 steps.
    tip = chart.locator(".tip").inner_text().splitlines()
    assert tip == [
        "Euler, 4 steps",
        "network evaluations per sample: 4",
        "RMSE of the worst sample: 0.25",
    ]
    page.mouse.move(2, 2)
    assert chart.locator(".tip").is_hidden()


def test_pointer_shows_step_of_adaptive_solver(open_page):
    page = open_page()
    chart = page.locator('[data-chart="steps-1"]')
    chart.scroll_into_view_if_needed()
    box = chart.locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 12, box["y"] + box["height"] / 2)
    tip = chart.locator(".tip").inner_text().splitlines()
    assert tip[0] in ("tolerance 1e-2, step 3 of 3", "tolerance 1e-4, step 4 of 4")
    assert tip[1] == "t (0 noise, 1 data): 1"


def test_touch_shows_values_of_point(open_page):
    page = open_page(has_touch=True, viewport={"width": 360, "height": 740})
    chart = page.locator('[data-chart="error"]')
    chart.scroll_into_view_if_needed()
    page.touchscreen.tap(*center(curve(page, "error", "Tsit5").locator("path").nth(1)))
    assert chart.locator(".tip").inner_text().startswith("Tsit5, tolerance 1e-2")


def test_arrow_keys_move_between_points_and_curves(open_page):
    page = open_page()
    chart = page.locator('[data-chart="error"]')
    chart.locator("svg").focus()
    titles = []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
        titles.append(chart.locator(".tip").inner_text().splitlines()[0])
    assert titles == [
        "Euler, 1 step",
        "Euler, 2 steps",
        "RK4, 2 steps",
        "Euler, 2 steps",
        "Euler, 1 step",
        "Euler, 1 step",
    ]
    page.keyboard.press("Escape")
    assert chart.locator(".tip").is_hidden()


def test_legend_button_toggles_curve_in_all_charts(open_page):
    page = open_page()
    button = page.locator(".legend").first.get_by_role("button", name="Euler")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    for chart in ("error", "time", "metric-1"):
        assert curve(page, chart, "Euler").count() == 0
        assert curve(page, chart, "RK4").count() == 1
    assert page.locator("table tbody tr:visible", has_text="Euler").count() == 0
    button.click()
    assert curve(page, "time", "Euler").count() == 1


def test_all_and_none_toggle_solver_family(open_page):
    page = open_page()
    group = page.locator(".legend").first.get_by_role("group", name="Fixed steps")
    group.get_by_role("button", name="none").click()
    assert page.locator('[data-chart="error"] g.series').count() == 1  # Only Tsit5 remains.
    group.get_by_role("button", name="all", exact=True).click()
    assert page.locator('[data-chart="error"] g.series').count() == 3


def test_header_sorts_column_ascending_then_descending(open_page):
    page = open_page()
    table = page.locator("table").first
    header = table.get_by_role("columnheader", name="evaluations")

    def column():
        return [int(text) for text in table.locator("tbody td:nth-child(3)").all_inner_texts()]

    header.get_by_role("button").click()
    assert column() == sorted(column())
    assert header.get_attribute("aria-sort") == "ascending"
    header.get_by_role("button").click()
    assert column() == sorted(column(), reverse=True)
    assert table.locator("[aria-sort]").count() == 1


def test_missing_values_are_sorted_last(open_page):
    page = open_page()
    table = page.locator("table").nth(1)
    for _ in range(2):
        table.get_by_role("button", name="bits").click()
        assert table.locator("tbody td:first-child").all_inner_texts() == ["b", "a"]
    table.get_by_role("button", name="model").click()
    assert table.locator("tbody td:first-child").all_inner_texts() == ["a", "b"]


def test_budget_selects_displayed_samples(open_page):
    page = open_page()
    shown = page.locator(".strip:visible figcaption span")
    page.locator(".budgets").get_by_role("button", name="4", exact=True).click()
    assert shown.all_inner_texts() == ["4 steps, 4 evaluations", "1 step, 4 evaluations"]
    page.locator(".budgets").get_by_role("button", name="16", exact=True).click()
    assert shown.all_inner_texts() == ["8 steps, 8 evaluations", "4 steps, 16 evaluations"]


def test_theme_follows_system_until_user_chooses(open_page):
    page = open_page(color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    picture = "document.querySelector('picture img').currentSrc"
    dark = page.evaluate(background)
    assert dark == "rgb(20, 24, 29)"
    dark_picture = page.evaluate(picture)
    theme = page.get_by_role("button", name="theme")
    theme.click()  # Switches to light.
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    page.wait_for_function(f"was => {picture} !== was", arg=dark_picture)
    theme.click()  # Switches to dark.
    assert page.evaluate(background) == dark


@pytest.mark.parametrize("width", [360, 1000])
def test_page_does_not_scroll_horizontally(open_page, width):
    page = open_page(viewport={"width": width, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.locator('[data-chart="error"] svg g').first.wait_for()
    assert page.locator('[data-chart="error"] svg').bounding_box()["width"] <= width


def test_charts_are_pictures_without_scripts(open_page):
    page = open_page(java_script_enabled=False)
    assert page.locator("noscript img").count() == 5
    assert page.locator("table tbody tr").first.is_visible()


def test_tooltip_names_all_curves_at_point(browser, tmp_path):
    ddim_runs = [run._replace(solver="DDIM") for run in example().runs if run.solver == "Euler"]
    overlapping = example()._replace(runs=(*example().runs, *ddim_runs))
    page = browser.new_page()
    page.goto(write_report(Report("x", comparison=overlapping), tmp_path).as_uri())
    page.locator('[data-chart="error"] svg').focus()
    page.keyboard.press("ArrowRight")
    tip = page.locator('[data-chart="error"] .tip').inner_text().splitlines()
    page.close()
    assert tip[:2] == ["Euler, 1 step", "and DDIM"]
