"""Samples drawn for a run, against the closed form on every path."""

import numpy as np
import pytest

from fmjax._progress import Silent
from fmjax.config import SamplingConfig
from fmjax.jobs.compare.methods import ode_solve
from fmjax.paths import AffinePath
from fmjax.runs.sampling.batches import make_sampler
from fmjax.sharding import even_batches, make_mesh
from tests.affine import SCHEDULES
from tests.oracles import Gaussian


@pytest.mark.parametrize(
    ("num", "at_once", "size"), [(1, 4, 8), (20, 8, 8), (20, 9, 16), (7, 99, 8)]
)
def test_batches_are_of_one_size_that_the_devices_share_and_hold_every_number_once(
    num, at_once, size
):
    found = list(even_batches(num, at_once, make_mesh()))
    assert [len(numbers) for numbers, _ in found] == [size] * -(-num // size)
    kept = np.concatenate([numbers[part] for numbers, part in found])
    np.testing.assert_array_equal(kept, np.arange(num))
    assert max(numbers.max() for numbers, _ in found) == num - 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
def test_exact_fields_of_every_path_give_the_mean_and_spread_of_the_data(name):
    """1,000 samples in 8 dimensions: the estimates scatter by 0.006 and 0.004."""
    schedule, _ = SCHEDULES[name]
    field = Gaussian(schedule, mean=1.0, std=0.5).velocity
    sampling = SamplingConfig(num_samples=1000, batch_size=1000, rtol=1e-5, atol=1e-5)
    solve = ode_solve(lambda params: field, sampling.make_solver())
    sample = make_sampler(
        AffinePath(schedule), solve, sampling.make_steps(), (8,), sampling, make_mesh()
    )
    drawn = sample({}, None, Silent())
    assert drawn.succeeded.all()
    np.testing.assert_allclose(drawn.x1.mean(), 1.0, atol=0.03)
    np.testing.assert_allclose(drawn.x1.std(), 0.5, atol=0.02)
