"""Tests that the code of docs/extending.md runs, and that its classes do what it says."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax.networks import make_network
from fmjax.solvers import Model

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
# Fewer steps and examples suffice, because the tests do not check what was learned.
SMALLER = {
    "num_examples: int = 2_000": "num_examples: int = 128",
    "num_steps=2_000, batch_size=256": "num_steps=3, batch_size=16",
    "num_samples=512": "num_samples=16",
    "my_batches(256)": "my_batches(16)",
    "num_steps=1_000": "num_steps=3",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The blocks of the page as one module, executed in an empty folder."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    for old, new in SMALLER.items():
        assert old in code
        code = code.replace(old, new)
    folder = tmp_path_factory.mktemp("extending")
    (folder / "own.py").write_text(code)
    spec = importlib.util.spec_from_file_location("own", folder / "own.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(sys.modules, "own", module)
        spec.loader.exec_module(module)
        yield module


def test_the_run_holds_the_objects_of_the_page(own):
    config = json.loads(own.run.folder.config.read_text())
    parts = config["data"], config["network"], config["path"]["schedule"], config["coupling"]
    names = [part["type"] for part in (*parts, config["loss"]["density"])]
    assert names == ["Spirals", "Residual", "Smoothstep", "SortedByFirst", "PowerDensity"]
    samples = own.run.sample(100, classes=1)
    assert (samples.x1.shape, set(samples.labels)) == ((100, 2), {1})
    assert samples.succeeded.all()
    assert (own.run.step, int(own.state.step)) == (3, 3)


def test_the_three_networks_take_points_times_and_labels(own):
    t, x, cond = jnp.array([0.2, 0.9]), jnp.ones((2, 2)), jnp.array([0, 2])
    for config in (own.Residual(), own.nnx_network, own.Linen()):
        net = make_network(config, (2,), 2)
        output = net.apply(net.init(jax.random.key(0)), t, x, cond)
        assert output.shape == (2, 2)
        assert (jnp.abs(output[0] - output[1]) > 0).all()


def test_the_schedule_and_the_density_have_the_ends_of_their_protocols(own):
    ends = jnp.array([0.0, 1.0])
    schedule = own.Smoothstep()
    np.testing.assert_array_equal(schedule.alpha(ends), ends)
    np.testing.assert_array_equal(schedule.sigma(ends), 1.0 - ends)
    np.testing.assert_array_equal(own.PowerDensity().quantile(ends), ends)


def test_the_coupling_sorts_within_each_class(own):
    keys = jax.random.split(jax.random.key(0))
    x0, x1 = (jax.random.normal(key, (64, 2)) for key in keys)
    cond = jnp.arange(64) % 2
    paired = np.asarray(own.SortedByFirst()(x0, x1, cond))
    for label in (0, 1):
        rows = np.flatnonzero(np.asarray(cond) == label)
        rows = rows[np.argsort(np.asarray(x1)[rows, 0])]
        expected = np.asarray(x0)[np.asarray(cond) == label]
        np.testing.assert_array_equal(paired[rows], expected[np.argsort(expected[:, 0])])


def test_the_solver_has_its_order_and_counts_evaluations(own):
    """The solution of `dx/dt = x + sin(2 t)` from 1 is `1.4 e^t - (sin(2 t) + 2 cos(2 t)) / 5`."""
    exact = 1.4 * np.e - (np.sin(2.0) + 2.0 * np.cos(2.0)) / 5.0
    x0, errors = jnp.ones((1, 2)), []
    for num_steps in (8, 16):
        steps = fmjax.FixedSteps(fmjax.uniform_grid(num_steps))
        result = fmjax.sample(
            lambda t, x, cond: x + jnp.sin(2 * t)[:, None],
            x0,
            solver=own.Ralston(),
            steps=steps,
        )
        assert result.nfe.tolist() == [2 * num_steps]
        errors.append(abs(float(result.x1[0, 0]) - exact))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(own.Ralston.convergence_order, abs=0.15)


def test_the_sampler_of_the_page_reaches_a_single_data_point(own):
    """The velocity to a point m is `(m - x) / (1 - t)`: the predicted data are m at all times."""

    def apply(params, t, x, cond=None):
        return (params[None] - x) / (1.0 - t)[:, None]

    model, point = Model(fmjax.VelocityNet(lambda key: {}, apply)), jnp.array([2.0, -1.0])
    sampler, keys = own.NewNoise(4), jax.random.split(jax.random.key(0), 3)
    solved = sampler(model, point, jnp.ones((3, 2)), keys, None, sampler.steps(model))
    np.testing.assert_allclose(solved.x1, np.tile(point, (3, 1)), atol=1e-5)
    assert solved.nfe.tolist() == [4, 4, 4]
    assert own.renoised.nfe.tolist() == [4] * 16
    assert own.renoised.succeeded.all()
    assert (own.renoised.x1.shape, own.guided.x1.shape) == ((16, 2), (16, 2))


def test_the_guidance_of_the_page_has_its_scale(own):
    net = fmjax.VelocityNet(lambda key: {}, lambda params, t, x, cond: x * cond[:, None])
    guided = own.FadingGuidance(3.0)(Model(net, null_cond=2)).predict_fn({})
    t, x, cond = jnp.array([0.0, 0.25, 1.0]), jnp.ones((3, 2)), jnp.array([0, 1, 1])
    scales = 3.0 - 2.0 * t
    expected = 2 + scales * (cond - 2)
    np.testing.assert_allclose(guided(t, x, cond), np.tile(expected[:, None], 2), rtol=1e-6)
    assert guided.evaluations(t).tolist() == [2, 2, 2]


def test_the_loss_is_the_mean_absolute_error_of_each_example(own):
    x1 = jax.random.normal(jax.random.key(1), (8, 2))
    still = fmjax.VelocityNet(lambda key: {}, lambda params, t, x, cond: jnp.zeros_like(x))
    objective = own.absolute_error_objective(still, fmjax.AffinePath())
    t, x0, *_ = examples = objective.make_examples(jax.random.key(0), fmjax.Batch(x1))
    assert ((t >= 0) & (t < 1)).all()
    expected = np.abs(np.asarray(x1 - x0)).mean(axis=1)
    np.testing.assert_allclose(objective.loss({}, examples), expected, rtol=1e-6)
