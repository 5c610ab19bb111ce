"""Tests of the comparison of solvers on a run: one compiled program per solver."""

import dataclasses

import jax
import numpy as np
import pytest

from fmjax.config import CompareConfig, Config, MLPConfig, build
from fmjax.jobs.compare.compare import compare
from fmjax.jobs.compare.compare_run import run_methods
from fmjax.runs.folder import Run, RunFolder
from fmjax.sharding import make_mesh

CONFIG = Config("toy", network=MLPConfig(width=8, num_layers=1))
COMPARED = CompareConfig(
    fixed_solvers=("euler", "ddim", "euler_maruyama"),
    num_steps=(1, 2, 4),
    grids=("uniform", "shifted"),
    tolerances=(1e-1, 1e-2),
)


@pytest.mark.slow
def test_each_solver_is_compiled_once_for_all_steps_grids_and_tolerances(tmp_path, monkeypatch):
    experiment = build(CONFIG, (2,), None)
    # A new network returns zero.
    params = jax.tree.map(lambda array: array + 0.2, experiment.init(jax.random.key(0)))
    run = Run(RunFolder(tmp_path), CONFIG, experiment, (2,), None, params, 1, make_mesh())
    num_compiled, compile_program = [], jax.stages.Lowered.compile

    def count(lowered, *args, **kwargs):
        num_compiled.append(1)
        return compile_program(lowered, *args, **kwargs)

    monkeypatch.setattr(jax.stages.Lowered, "compile", count)
    comparison = compare(
        run.model.velocity_fn,
        params,
        jax.random.normal(jax.random.key(1), (8, 2)),
        methods=run_methods(run, COMPARED),
        keys=jax.random.split(jax.random.key(2), 8),
        repeats=1,
    )
    assert len(comparison.runs) == 3 * 3 * 2 + 2
    assert len(num_compiled) == 1 + 3 + 1  # The reference, and one per solver.
    errors = {(row.solver, row.steps): row.rmse_mean for row in comparison.runs}
    assert errors["Euler", 4] < errors["Euler", 1]
    assert np.isfinite([errors["DDIM", num] for num in COMPARED.num_steps]).all()
    streamed = run_methods(run, dataclasses.replace(COMPARED, slots=2))
    assert len({method.solve for method in streamed}) == 5
