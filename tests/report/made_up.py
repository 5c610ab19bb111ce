"""Comparisons with made-up numbers for tests of the report."""

from fmjax.report.comparison import Comparison, Reference, SolverRun, StepEnds

REFERENCE = Reference("Dopri8", 1e-9, "float64", 1200, 2e-8, "", {"sliced Wasserstein": 0.05})


def run(solver, setting, nfe, worst, seconds, *, succeeded=1.0):
    steps, tolerance = (setting, None) if isinstance(setting, int) else (None, setting)
    return SolverRun(
        solver=solver,
        steps=steps,
        tolerance=tolerance,
        nfe_mean=float(nfe),
        nfe_max=nfe,
        rmse_mean=worst / 2,
        rmse_worst=worst,
        seconds=seconds,
        succeeded=succeeded,
        metrics={"sliced Wasserstein": 0.05 + worst},
        family="adaptive" if steps is None else "fixed",
    )


def comparison(*runs, reference=REFERENCE):
    return Comparison(
        runs=runs,
        reference=reference,
        num_samples=16,
        device="two cores",
        floors={"sliced Wasserstein": 0.03},
    )


def example():
    """Return a comparison of Euler (order 1), RK4 (order 4) and Tsit5 with its steps."""
    runs = [run("Euler", n, n, 1.0 / n, 0.01 * n) for n in (1, 2, 4, 8)]
    runs += [run("RK4", n, 4 * n, 1.0 / n**4, 0.05 * n) for n in (1, 2, 4, 8)]
    runs += [run("Tsit5", tol, round(30 * tol**-0.2), tol, 0.3) for tol in (1e-2, 1e-4)]
    step_ends = (
        StepEnds("Tsit5", 1e-2, (0.25, 0.5, 1.0)),
        StepEnds("Tsit5", 1e-4, (0.1, 0.3, 0.6, 1.0)),
    )
    return comparison(*runs)._replace(step_ends=step_ends)
