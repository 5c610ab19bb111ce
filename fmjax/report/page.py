"""The report of a run or a study: a self-contained HTML page and its figures as PNG files.

The page contains its pictures, script and style. Its content security policy forbids loading
anything and running any other script. Without JavaScript, pictures replace the charts.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from fmjax._files import lock_outputs, write_atomically
from fmjax._version import __version__
from fmjax.report.advice import sentences
from fmjax.report.charts import (
    comparison_charts,
    comparison_legend,
    loss_chart,
    loss_legend,
    step_charts,
    step_legend,
    to_script,
)
from fmjax.report.comparison import power_of_ten
from fmjax.report.content import Report
from fmjax.report.pictures import Picture, data_uri, draw_pictures
from fmjax.report.strips import budgets, strips
from fmjax.report.style import save_png
from fmjax.report.tables import comparison_table

SCRIPTS = ("charts.js", "page.js")


def write_report(report: Report, folder: Path) -> Path:
    """Write `report.html` and `figures/*.png` into `folder`.

    Each file is written atomically, the page last.

    Returns:
        The file of the page.
    """
    pictures = draw_pictures(report)
    page = folder / "report.html"
    # Another command may be writing the same page.
    with lock_outputs(page, on_wait=lambda _: None):
        for picture in pictures.values():
            save_png(picture.light, folder / "figures" / f"{picture.name}.png")
        with write_atomically(page) as temporary:
            temporary.write_text(render(report, pictures), encoding="utf-8")
    return page


def render(report: Report, pictures: Mapping[str, Picture]) -> str:
    """Render the page as HTML.

    Args:
        report: Content of the page.
        pictures: Pictures of the same report, from `draw_pictures`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fmjax", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["power"] = power_of_ten
    environment.filters["data_uri"] = data_uri
    comparison = report.comparison
    script = "\n".join(_text(name) for name in SCRIPTS)
    style = _text("page.css")
    data = _charts(report)
    return environment.get_template("page.html.j2").render(
        report=report,
        comparison=comparison,
        pictures=pictures,
        charts=data["charts"],
        data=to_script(data),
        table=comparison_table(comparison) if comparison else None,
        strips=strips(report.gallery),
        budgets=budgets(report.gallery),
        sentences=sentences(comparison) if comparison else (),
        config=json.dumps(report.config, indent=2, default=str) if report.config else "",
        script=script,
        style=style,
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'",
        version=__version__,
    )


def _charts(report: Report) -> dict[str, Any]:
    """Collect the data for the page's script: legends and charts, by name."""
    legends, charts = {}, {}
    if report.comparison is not None:
        legends["solvers"] = comparison_legend(report.comparison)
        charts |= comparison_charts(report.comparison)
        if report.comparison.step_ends:
            legends["tolerances"] = step_legend(report.comparison)
            charts |= step_charts(report.comparison)
    if report.loss is not None and report.loss.steps:
        legends["loss"] = loss_legend()
        charts["loss"] = loss_chart(report.loss.steps, report.loss.losses)
    return {"legends": legends, "charts": charts}


def _text(name: str) -> str:
    return files("fmjax.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the hash of a script or style for the content security policy."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
