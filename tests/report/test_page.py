import base64
import hashlib
import html
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from fmjax.report.charts import to_script
from fmjax.report.page import (
    KeyNumber,
    LossCurve,
    NamedPicture,
    Report,
    SampleGrid,
    SamplePoints,
    Table,
    write_report,
)
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
        self.open, self.seen, self.sources = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "srcset", "href", "data", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.slow
def test_the_page_refers_to_nothing_outside_itself(page):
    elements = Elements(page)
    assert elements.sources
    assert all(source.startswith("data:image/png;base64,") for source in elements.sources)
    assert not {"link", "iframe", "object", "base"} & set(elements.seen)
    assert not re.search(r"https?:|url\(|@import|//cdn", page)
    assert "default-src 'none'" in html.unescape(page)


@pytest.mark.slow
def test_the_policy_allows_this_script_and_style_alone(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
    policy = html.unescape(policy)
    for tag in ("script", "style"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL).group(1)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_every_element_that_opens_closes(page):
    assert Elements(page).open == []


def test_what_the_user_wrote_is_escaped(page):
    assert "<script>alert" not in page
    assert "digits &lt;1&gt;" in page


def test_the_page_shows_every_run_the_advice_and_the_key_numbers(page):
    assert page.count("<tr") == 1 + len(example().runs)
    assert "For a worst-sample error of at most 0.1" in page
    assert "two halves of the real data: 5.1" in page
    assert "1.2e-1" in page  # The worst sample of Euler with 8 steps is 0.125 away.


def test_charts_are_pictures_where_there_are_no_scripts(page, folder):
    files = sorted(path.stem for path in (folder / "figures").iterdir())
    assert files == ["error", "loss", "metric-1", "samples", "steps", "time"]
    instead = re.findall(r'<noscript><img src="data:image/png;base64,([^"]+)"', page)
    found = [base64.b64decode(picture) for picture in instead]
    charts = ("error", "time", "metric-1", "steps", "loss")
    assert found == [(folder / "figures" / f"{name}.png").read_bytes() for name in charts]


def test_other_pictures_have_a_light_and_a_dark_rendering(page, folder):
    assert page.count('prefers-color-scheme: dark)" srcset') == 1  # Samples.
    embedded = re.search(r'<img src="data:image/png;base64,([^"]+)"', page).group(1)
    assert base64.b64decode(embedded) == (folder / "figures" / "samples.png").read_bytes()


def test_the_charts_data_cannot_end_their_element():
    assert to_script({"name": "</script>"}) == '{"name":"\\u003c/script>"}'


@pytest.mark.slow
def test_a_guided_comparison_says_so(page, tmp_path):
    assert "guidance" not in page
    guided = example()._replace(guidance=3.0)
    text = write_report(Report("x", comparison=guided), tmp_path).read_text(encoding="utf-8")
    assert "on two cores, guidance 3.0." in text


@pytest.mark.slow
def test_runs_that_left_samples_behind_stand_out(tmp_path):
    failed = comparison(run("Tsit5", 1e-6, 10, float("inf"), 0.1, succeeded=0.5))
    text = write_report(Report("x", comparison=failed), tmp_path).read_text(encoding="utf-8")
    assert '<td class="bad" data-value="0.5">50 %</td>' in text


def test_a_report_of_a_toy_needs_no_comparison(tmp_path):
    points = SamplePoints(np.zeros((3, 2)), np.ones((3, 2)))
    text = write_report(Report("moons", samples=points), tmp_path).read_text(encoding="utf-8")
    assert "Samples" in text
    assert "Fixed-step and adaptive" not in text


def test_further_tables_and_pictures_have_sections_of_their_own(tmp_path):
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
