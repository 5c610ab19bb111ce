"""Tests that no intermediate value is NaN, with `jax_debug_nans` enabled.

Without `jit` JAX checks the result of every operation, including values that a mask removes later.
"""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.metrics import straightness
from fmjax.paths import AffinePath, Cosine, uniform_grid
from fmjax.solvers import (
    DDIM,
    AdamsBashforth2,
    AdaptiveSteps,
    Ancestral,
    DPMSolverPP2M,
    ErrorControl,
    FixedSteps,
    Heun,
    UniPC,
    edit,
    interpolate,
    invert,
    log_density,
    sample,
    sample_diffusion,
    sample_flow_map,
    sample_sde,
)
from tests.solvers.table import GAUSSIAN, noise
from tests.tiny_run import command, environment, write_config

KEYS = jax.random.split(jax.random.key(3), 6)
PADDED = FixedSteps(jnp.asarray([0.0, 0.4, 1.0, 1.0]))


@pytest.fixture(autouse=True)
def stop_at_nan():
    with jax.debug_nans(True):
        yield


def zero_field(t, x, cond=None):
    return jnp.zeros_like(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "field",
    [pytest.param(GAUSSIAN.velocity, marks=pytest.mark.slow), zero_field],
    ids=["gaussian", "zero"],
)
@pytest.mark.parametrize(
    "steps",
    [
        AdaptiveSteps(control=ErrorControl.LARGEST_SAMPLE),
        AdaptiveSteps(control=ErrorControl.WHOLE_BATCH_RMS),
        AdaptiveSteps(control=ErrorControl.PER_SAMPLE),
        AdaptiveSteps(control=ErrorControl.PER_SAMPLE, slots=2),
    ],
    ids=["largest_sample", "batch_rms", "per_sample", "streaming"],
)
def test_adaptive_solves_compute_no_nan(field, steps):
    samples = sample(field, noise(), steps=steps)
    assert samples.succeeded.all()
    times, num_accepted = map(np.asarray, (samples.stats.step_ends, samples.stats.num_accepted))
    for sample_times, num in zip(
        np.broadcast_to(times, (6, times.shape[-1])), num_accepted, strict=True
    ):
        assert sample_times[num - 1] == 1.0
        assert np.all(sample_times[num:] == np.inf)


@pytest.mark.parametrize("solver", [Heun(), AdamsBashforth2()])
def test_fixed_and_padded_steps_compute_no_nan(solver):
    samples = jax.jit(lambda steps: sample(GAUSSIAN.velocity, noise(), solver=solver, steps=steps))(
        PADDED
    )
    assert samples.stats.step_ends.tolist() == [pytest.approx(0.4), 1.0, np.inf]


@pytest.mark.parametrize("sampler", [Ancestral(), DDIM(1.0), DPMSolverPP2M(), UniPC(3)], ids=repr)
def test_diffusion_samplers_compute_no_nan(sampler):
    path = AffinePath(Cosine())
    samples = sample_diffusion(
        GAUSSIAN.velocity, path, noise(), KEYS, sampler=sampler, steps=FixedSteps(uniform_grid(4))
    )
    assert samples.succeeded.all()


@pytest.mark.slow
def test_other_solvers_compute_no_nan():
    x, path = noise(), AffinePath(Cosine())
    assert sample_sde(GAUSSIAN.velocity, path, x, KEYS, steps=PADDED).succeeded.all()
    assert sample_flow_map(GAUSSIAN.mean_velocity, x, steps=PADDED).succeeded.all()
    assert log_density(zero_field, x).succeeded.all()
    assert invert(zero_field, x).succeeded.all()
    assert edit(zero_field, path, x, KEYS, 0.5).succeeded.all()


@pytest.mark.slow
def test_masked_values_are_not_nan():
    zeros = jnp.zeros((6, 3))
    assert straightness(zero_field, zeros, num_steps=2).length_ratio.tolist() == [1.0] * 6
    np.testing.assert_array_equal(interpolate(zeros, zeros, 2), jnp.zeros((2, 6, 3)))
    sample(GAUSSIAN.velocity, noise(), solver=AdamsBashforth2(), steps=FixedSteps(uniform_grid(2)))


@pytest.mark.slow
def test_train_and_compare_commands_compute_no_nan(tmp_path):
    config, run = write_config(tmp_path), tmp_path / "run"
    compare = [sys.executable, "-m", "fmjax.cli", "compare", str(run), "--num-samples", "8"]
    for args in (command(config, run), compare):
        process = subprocess.run(
            args, env=environment(JAX_DEBUG_NANS="1"), capture_output=True, text=True
        )
        assert (process.returncode, process.stderr) == (0, "")
    assert (run / "comparison.json").is_file()
