"""Tests of samplers and guidance in configs: a user's own, JSON, and files of older versions."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.config import (
    DDIM,
    ClassifierFree,
    Config,
    DiffusionSampler,
    Euler,
    GridSteps,
    OdeSampler,
    Sampling,
    SdeSampler,
    ShiftedGrid,
    SigmaRate,
    UniPC,
    from_json,
    make_solve,
    register_classes,
    require_types,
    serialize,
    to_json,
    user_classes,
)
from fmjax.config.sampling import flat_settings
from fmjax.paths import CountedField, VelocityNet, evaluations
from fmjax.runs.sampling.files import settings_name
from fmjax.solvers import Model, Samples

NET = VelocityNet(lambda key: {}, lambda params, t, x, cond=None: cond[:, None] - x * t[:, None])
MODEL = Model(NET, null_cond=0.0)
X0 = jax.random.normal(jax.random.key(0), (16, 3))
COND = jnp.linspace(-1.0, 1.0, 16)


@dataclasses.dataclass(frozen=True)
class Forward:
    """Euler steps of equal length."""

    num_steps: int = 4

    def steps(self, model, calibrated=None):
        return jnp.linspace(0.0, 1.0, self.num_steps + 1)

    def __call__(self, model, params, x0, keys, cond, steps):
        field, x = model.velocity_fn(params), x0
        for n in range(len(steps) - 1):
            t = jnp.broadcast_to(steps[n], x.shape[:1])
            x = x + (steps[n + 1] - steps[n]) * field(t, x, cond)
        nfe = jnp.full(len(x), (len(steps) - 1) * evaluations(field, jnp.zeros(1))[0])
        return Samples(x, nfe, jnp.isfinite(x).all(axis=1))


@dataclasses.dataclass(frozen=True)
class Doubled:
    """Guidance that multiplies the prediction."""

    factor: float = 2.0

    def __call__(self, model):
        def predict_fn(params):
            predict = model.predict_fn(params)
            return CountedField(
                lambda t, x, cond=None: self.factor * predict(t, x, cond),
                lambda t: evaluations(predict, t),
            )

        return model.with_prediction(predict_fn)


@dataclasses.dataclass(frozen=True)
class NoSteps:
    """Lacks the method `steps`."""

    def __call__(self, model, params, x0, keys, cond, steps):
        raise AssertionError


def solve(sampling):
    return make_solve(MODEL, sampling)({}, X0, None, COND, sampling.steps(MODEL))


@pytest.mark.parametrize("guidance", [None, ClassifierFree(2.0), Doubled(0.5)])
def test_a_sampler_of_a_user_equals_the_solver_of_the_same_method(guidance):
    own = solve(Sampling(Forward(5), guidance))
    euler = solve(Sampling(OdeSampler(Euler(), GridSteps(5)), guidance))
    np.testing.assert_allclose(own.x1, euler.x1, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(own.nfe, euler.nfe)


def test_user_classes_round_trip_only_if_they_are_registered(monkeypatch):
    monkeypatch.setattr(serialize, "_user_classes", {})
    config = Config("x", sampling=Sampling(Forward(3), Doubled(1.5)))
    require_types(config)
    text = to_json(config)
    with pytest.raises(ValueError, match=r"--config FILE.*at sampling.sampler, got 'Forward'"):
        from_json(text)
    assert set(user_classes(config)) == {Forward, Doubled}
    register_classes(user_classes(config))
    assert from_json(text) == config


@pytest.mark.usefixtures("unchecked")
def test_a_missing_method_is_refused_by_name():
    with pytest.raises(ValueError, match="sampler must have a method steps, like every Sampler"):
        Sampling(NoSteps())
    with pytest.raises(ValueError, match="sampler must be an object of Sampler, not a class"):
        Sampling(Forward)
    with pytest.raises(ValueError, match="guidance must have a method __call__"):
        Sampling(guidance=1.5)


@pytest.mark.parametrize(
    "sampler",
    [
        DiffusionSampler(DDIM(0.5), GridSteps(8, ShiftedGrid(2.0)), clip=1.0),
        DiffusionSampler(UniPC(3)),
        SdeSampler(rate=SigmaRate(0.5, power=2.0), last_step=0.1),
        Sampling.of(solver="tsit5", slots=4).sampler,
    ],
)
def test_settings_of_a_sampler_survive_json(sampler):
    config = Config("x", sampling=Sampling(sampler, ClassifierFree(2.0, (0.2, 0.8))))
    require_types(config)
    assert from_json(to_json(config)) == config


def test_files_of_older_versions_open_with_the_same_settings():
    fields = flat_settings(Sampling.of(solver="heun", num_steps=4, guidance=1.5, seed=3))
    document = json.loads(to_json(Config("x")))
    # Other fields had no effect with fixed steps.
    fields |= {"rtol": 1e-2, "rate_scale": 2.0, "control": "per_sample", "grid_density": None}
    sampling = from_json(json.dumps(document | {"sampling": fields})).sampling
    assert sampling == Sampling.of(solver="heun", num_steps=4, guidance=1.5, seed=3)


def test_file_names_tell_settings_without_a_short_name_apart():
    samplers = [DiffusionSampler(DDIM(eta), GridSteps(8)) for eta in (0.0, 0.5, 1.0)]
    names = [settings_name(Sampling(sampler)) for sampler in (*samplers, Forward(3), Forward(4))]
    assert len(set(names)) == 5
    assert names[0] == "ddim-8-uniform-num64-seed0"


def test_names_change_only_settings_that_the_sampler_has():
    ddim = Sampling(DiffusionSampler(DDIM(0.5), GridSteps(8)))
    assert ddim.with_names(num_steps=4).sampler == DiffusionSampler(DDIM(0.5), GridSteps(4))
    assert Sampling(Forward(3)).with_names(num_steps=7).sampler == Forward(7)
    with pytest.raises(ValueError, match="rtol must be left out for Forward, which has no such"):
        Sampling(Forward(3)).with_names(rtol=1e-3)
