"""The tables of a page beside its comparison, from the files of run folders."""

import math
from collections.abc import Sequence
from pathlib import Path

from fmjax.config import solver_title
from fmjax.jobs.evaluate.likelihood import read_likelihood
from fmjax.jobs.evaluate.straightness import read_paths
from fmjax.jobs.invert.invert import RoundTrip, read_inversion
from fmjax.report.comparison import power_of_ten
from fmjax.report.page import Cell, Table
from fmjax.report.tables import number
from fmjax.runs.folder import RunFolder


def path_tables(runs: Sequence[Path]) -> tuple[Table, ...]:
    """How straight the paths of several runs are, of those that know."""
    known = [(path.name, RunFolder(path).paths) for path in runs]
    found = [(name, read_paths(path)) for name, path in known if path.is_file()]
    rows = [
        (
            name,
            Cell(f"{paths.s:.4g}", paths.s),
            Cell(f"{paths.s_error:.1g}", paths.s_error),
            Cell(f"{paths.length_ratio:.5g}", paths.length_ratio),
            number(paths.cost),
            Cell(f"{paths.num_paths:,}", paths.num_paths),
        )
        for name, paths in found
    ]
    note = (
        "Integral of E |(x1 - x0) - v|², and the length of a path over the distance of its ends: 0 "
        "and 1 are straight at constant speed. The cost is E |x1 - x0|²."
    )
    columns = ("model", "straightness", "standard error", "length", "transport cost", "paths")
    return (Table("How straight the paths are", columns, rows, note),) if rows else ()


def likelihood_tables(folder: RunFolder) -> tuple[Table, ...]:
    """What `fmjax likelihood` found."""
    path = folder.likelihood
    if not path.is_file():
        return ()
    found = read_likelihood(path)
    rows = [("nats of an example", found.nats, found.nats_error)]
    if found.bits_per_dim is not None and found.bits_error is not None:
        rows.insert(0, ("bits per dimension", found.bits_per_dim, found.bits_error))
    cells = [
        (name, Cell(f"{mean:.5g}", mean), Cell(f"{error:.2g}", error)) for name, mean, error in rows
    ]
    note = (
        f"Mean over {found.num_examples - found.num_failed:,} test examples by {found.method}; "
        f"{found.nfe:.4g} network evaluations each."
    )
    return (Table("Likelihood", ("of test data", "mean", "standard error"), cells, note),)


def round_trip_tables(folder: RunFolder) -> tuple[Table, ...]:
    """What `fmjax invert` found to be lost from image to noise to image."""
    if not folder.inversion.is_file():
        return ()
    found = read_inversion(folder.inversion)
    num_images = found.num_images
    rows = [_trip_row(trip, num_images) for trip in found.round_trips]
    columns = (
        "solver",
        "setting",
        "evaluations",
        "RMSE, mean",
        "RMSE, worst",
        "rms of the noise",
        "arrived",
    )
    note = (
        f"What differs after the way to noise and back, of {num_images:,} images with "
        "pixels in [-1, 1]; evaluations are of both directions together."
    )
    return (Table("To noise and back", columns, rows, note),)


def _trip_row(trip: RoundTrip, num_images: int) -> list[str | float | Cell]:
    if trip.tolerance is None:
        steps = trip.num_steps or 0
        family, setting = "fixed", Cell("1 step" if steps == 1 else f"{steps} steps", steps)
    else:
        family = "adaptive"
        setting = Cell(f"tolerance {power_of_ten(trip.tolerance)}", 1 / trip.tolerance)
    errors = (trip.mean_rmse, trip.worst_rmse, trip.noise_rms)
    arrived = num_images - trip.num_failed
    return [
        Cell(solver_title(trip.solver), kind=family),
        setting,
        trip.nfe,
        *(math.nan if error is None else error for error in errors),
        Cell(f"{arrived} of {num_images}", arrived, "bad" if trip.num_failed else ""),
    ]
