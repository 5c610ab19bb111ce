"""Tables of a report that are made from the files of run folders."""

import math
from collections.abc import Sequence
from pathlib import Path

from fmjax.config import solver_title
from fmjax.jobs.evaluate.likelihood import read_likelihood
from fmjax.jobs.evaluate.straightness import read_straightness
from fmjax.jobs.invert.invert import RoundTrip, read_inversion
from fmjax.report.comparison import power_of_ten
from fmjax.report.tables import Cell, Table, number
from fmjax.runs.folder import RunFolder


def straightness_tables(runs: Sequence[Path]) -> tuple[Table, ...]:
    """Make the table of the straightness of several runs, from those that have results."""
    files = [(run.name, RunFolder(run).straightness) for run in runs]
    results = [(name, read_straightness(file)) for name, file in files if file.is_file()]
    rows = [
        (
            name,
            Cell(f"{result.s:.4g}", result.s),
            Cell(f"{result.s_error:.1g}", result.s_error),
            Cell(f"{result.length_ratio:.5g}", result.length_ratio),
            number(result.cost),
            Cell(f"{result.num_trajectories:,}", result.num_trajectories),
        )
        for name, result in results
    ]
    note = (
        "Straightness is the integral of E |(x1 - x0) - v|²; length is the length of a trajectory "
        "divided by the distance between its ends. Straight trajectories at constant speed have 0 "
        "and 1. Transport cost is E |x1 - x0|²."
    )
    columns = (
        "model",
        "straightness",
        "standard error",
        "length",
        "transport cost",
        "trajectories",
    )
    return (Table("Straightness of trajectories", columns, rows, note),) if rows else ()


def likelihood_tables(folder: RunFolder) -> tuple[Table, ...]:
    """Make the table of the results of `fmjax likelihood`; no table if there are none."""
    if not folder.likelihood.is_file():
        return ()
    result = read_likelihood(folder.likelihood)
    rows = [("nats per example", result.nats, result.nats_error)]
    if result.bits_per_dim is not None and result.bits_error is not None:
        rows.insert(0, ("bits per dimension", result.bits_per_dim, result.bits_error))
    cells = [
        (name, Cell(f"{mean:.5g}", mean), Cell(f"{error:.2g}", error)) for name, mean, error in rows
    ]
    note = (
        f"Mean over {result.num_examples - result.num_failed:,} test examples by {result.method}; "
        f"{result.nfe:.4g} network evaluations each."
    )
    return (Table("Likelihood", ("of test data", "mean", "standard error"), cells, note),)


def round_trip_tables(folder: RunFolder) -> tuple[Table, ...]:
    """Make the table of the round-trip errors of `fmjax invert`; no table if there are none."""
    if not folder.inversion.is_file():
        return ()
    inversion = read_inversion(folder.inversion)
    num_images = inversion.num_images
    rows = [_trip_row(trip, num_images) for trip in inversion.round_trips]
    columns = (
        "solver",
        "setting",
        "evaluations",
        "RMSE, mean",
        "RMSE, worst",
        "rms of the noise",
        "succeeded",
    )
    note = (
        f"Difference between {num_images:,} images, with pixels in [-1, 1], and their "
        "reconstructions from noise. Evaluations include both directions."
    )
    return (Table("Round trips to noise", columns, rows, note),)


def _trip_row(trip: RoundTrip, num_images: int) -> list[str | float | Cell]:
    if trip.tolerance is None:
        steps = trip.num_steps or 0
        family, setting = "fixed", Cell("1 step" if steps == 1 else f"{steps} steps", steps)
    else:
        family = "adaptive"
        setting = Cell(f"tolerance {power_of_ten(trip.tolerance)}", 1 / trip.tolerance)
    errors = (trip.mean_rmse, trip.worst_rmse, trip.noise_rms)
    succeeded = num_images - trip.num_failed
    return [
        Cell(solver_title(trip.solver), kind=family),
        setting,
        trip.nfe,
        *(math.nan if error is None else error for error in errors),
        Cell(f"{succeeded} of {num_images}", succeeded, "bad" if trip.num_failed else ""),
    ]
