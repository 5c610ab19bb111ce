"""Samples drawn for a run, against the closed form on every path."""

import numpy as np
import pytest

from fmjax.config import SamplingConfig
from fmjax.paths import AffinePath
from fmjax.studies.draw import draw_samples
from fmjax.studies.methods import ode_solve
from fmjax.training import make_mesh
from tests.affine import SCHEDULES
from tests.oracles import Gaussian


@pytest.mark.parametrize("name", SCHEDULES)
def test_exact_fields_of_every_path_give_the_mean_and_spread_of_the_data(name):
    """1,000 samples in 8 dimensions: the estimates scatter by 0.006 and 0.004."""
    schedule, _ = SCHEDULES[name]
    field = Gaussian(schedule, mean=1.0, std=0.5).velocity
    sampling = SamplingConfig(num_samples=1000, batch_size=1000, rtol=1e-5, atol=1e-5)
    solve = ode_solve(lambda params: field, sampling.make_solver())
    drawn = draw_samples(AffinePath(schedule), solve, sampling.make_steps(), {}, (8,), None,
                         sampling, make_mesh())  # fmt: skip
    assert drawn.succeeded.all()
    np.testing.assert_allclose(drawn.x1.mean(), 1.0, atol=0.03)
    np.testing.assert_allclose(drawn.x1.std(), 0.5, atol=0.02)
