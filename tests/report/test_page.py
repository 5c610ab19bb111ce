"""Tests of the report page: contents, escaping and content security policy."""

import base64
import hashlib
import html
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from fmjax.report.charts import to_script
from fmjax.report.content import (
    KeyNumber,
    LossCurve,
    NamedPicture,
    Report,
    SampleGrid,
    SamplePoints,
)
from fmjax.report.page import write_report
from fmjax.report.tables import Table
from tests.report.made_up import comparison, example, run

REPORT = Report(
    title="digits <1>",
    summary="A small run.",
    key_numbers=(KeyNumber("Fréchet distance", "12.3", "two halves of the real data: 5.1"),),
    samples=SampleGrid(np.zeros((4, 8, 8, 1)), 2, ("zero", "one"), "One row per class."),
    comparison=example(),
    loss=LossCurve((1.0, 2.0), (1.0, 0.5)),
    config={"network": {"width": 96}, "name": "<script>alert(1)</script>"},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert write_report(REPORT, folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.open_tags, self.tags, self.urls = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "img", "source"):
            self.open_tags.append(tag)
        self.urls += [v for k, v in attrs if k in ("src", "srcset", "href", "data", "action")]

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag


@pytest.mark.slow
def test_page_has_no_external_references(page):
    elements = Elements(page)
    assert elements.urls
    assert all(url.startswith("data:image/png;base64,") for url in elements.urls)
    assert not {"link", "iframe", "object", "base"} & set(elements.tags)
    assert not re.search(r"https?:|url\(|@import|//cdn", page)
    assert "default-src 'none'" in html.unescape(page)


@pytest.mark.slow
def test_policy_allows_only_embedded_script_and_style(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
    policy = html.unescape(policy)
    for tag in ("script", "style"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL).group(1)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_every_element_is_closed(page):
    assert Elements(page).open_tags == []


def test_user_text_is_escaped(page):
    assert "<script>alert" not in page
    assert "digits &lt;1&gt;" in page


def test_page_shows_runs_advice_and_key_numbers(page):
    assert page.count("<tr") == 1 + len(example().runs)
    assert "For a worst-sample error of at most 0.1" in page
    assert "two halves of the real data: 5.1" in page
    assert "1.2e-1" in page  # The worst-sample error of Euler with 8 steps is 0.125.


def test_charts_have_pictures_for_browsers_without_scripts(page, folder):
    files = sorted(file.stem for file in (folder / "figures").iterdir())
    assert files == ["error", "loss", "metric-1", "samples", "steps", "time"]
    embedded = re.findall(r'<noscript><img src="data:image/png;base64,([^"]+)"', page)
    pictures = [base64.b64decode(picture) for picture in embedded]
    charts = ("error", "time", "metric-1", "steps", "loss")
    assert pictures == [(folder / "figures" / f"{name}.png").read_bytes() for name in charts]


def test_other_pictures_have_light_and_dark_versions(page, folder):
    assert page.count('prefers-color-scheme: dark)" srcset') == 1  # Only the samples.
    embedded = re.search(r'<img src="data:image/png;base64,([^"]+)"', page).group(1)
    assert base64.b64decode(embedded) == (folder / "figures" / "samples.png").read_bytes()


def test_chart_data_cannot_close_script_element():
    assert to_script({"name": "</script>"}) == '{"name":"\\u003c/script>"}'


@pytest.mark.slow
def test_guided_comparison_shows_guidance(page, tmp_path):
    assert "guidance" not in page
    guided = example()._replace(guidance=3.0)
    text = write_report(Report("x", comparison=guided), tmp_path).read_text(encoding="utf-8")
    assert "on two cores, guidance 3.0." in text


@pytest.mark.slow
def test_runs_with_failed_samples_are_highlighted(tmp_path):
    failed = comparison(run("Tsit5", 1e-6, 10, float("inf"), 0.1, succeeded=0.5))
    text = write_report(Report("x", comparison=failed), tmp_path).read_text(encoding="utf-8")
    assert '<td class="bad" data-value="0.5">50 %</td>' in text


def test_report_without_comparison_is_written(tmp_path):
    points = SamplePoints(np.zeros((3, 2)), np.ones((3, 2)))
    text = write_report(Report("moons", samples=points), tmp_path).read_text(encoding="utf-8")
    assert "Samples" in text
    assert "Fixed-step and adaptive" not in text


def test_additional_tables_and_pictures_have_sections(tmp_path):
    table = Table("Likelihood", ("model", "bits"), (("a <b>", 2.913), ("c", math.nan)), "Of 10.")
    picture = NamedPicture("Between two noises", b"png", "Along an arc.")
    report = Report("x", tables=(table,), pictures=(picture,))
    text = write_report(report, tmp_path).read_text(encoding="utf-8")
    assert "<h2>Likelihood</h2>" in text
    assert '<p class="note">Of 10.</p>' in text
    assert '<td>a &lt;b&gt;</td><td data-value="2.913">2.91</td>' in text
    assert '<td data-value="nan">–</td>' in text
    assert "<h2>Between two noises</h2>" in text
    assert "Along an arc." in text
