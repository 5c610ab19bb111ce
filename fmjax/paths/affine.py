"""Affine paths, and the conversions among what a network can predict on them.

On `x_t = a x1 + s x0` with rates a', s', four quantities say the same thing:

    velocity  u  = a' x1 + s' x0          target  x1
    score        = -x0 / s                source  x0

Each is a row of two weights on (x1, x0), and so is x_t = (a, s). A row r is a combination of
x_t and any other row q, `r = c_x x_t + c_q q`, and two by two linear equations give

    D   = s q_1 - a q_0
    c_x = (r_0 q_1 - r_1 q_0) / D,    c_q = (s r_1 - a r_0) / D

where r_1 is r's weight on x1 and r_0 that on x0. So one formula makes ten of the twelve
conversions; between score and x0, which are the same but for a factor, x_t is not needed.

Conversions are exact wherever D > 0. D vanishes at times at which q adds nothing to x_t: x1
predicted at t = 1 of the linear path, noise predicted at t = 0, the velocity where both rates are
zero (t = 0 of a polynomial path). There r is what it would be on average for standard normal data,

    E[r | x_t] = (a r_1 + s r_0) / (a^2 + s^2) x_t,

and no use is made of q. Where alpha = 0 or sigma = 0 this is the limit of those conversions that
have one: x_t is then all noise or all data, and says so. All others have no limit, and this bounds
them.

Source: Lipman et al. 2024, arXiv:2412.06264, section 4.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmjax._arrays import Cond, Points, Times, expand_like
from fmjax._checks import require, require_at_least, require_numbers
from fmjax._inputs import described
from fmjax.paths.ddpm_schedules import CosineBetas, LinearBetas
from fmjax.paths.schedules import (
    Cosine,
    Linear,
    Polynomial,
    Schedule,
    VarianceExploding,
    VariancePreserving,
    angle,
    time_at_angle,
    with_rate,
)
from fmjax.paths.velocity import CountedField, VelocityFn, evaluations

AnySchedule = (
    Linear
    | Cosine
    | VariancePreserving
    | VarianceExploding
    | Polynomial
    | LinearBetas
    | CosineBetas
)

# How near to a pole of a conversion fields and losses go.
_EDGE = 1e-3


class PathSample(NamedTuple):
    """A point of the path and its velocity.

    Attributes:
        x_t: The point, `[batch, *event]`.
        u_t: The conditional velocity dx_t/dt, in data units per unit of time.
    """

    x_t: jax.Array
    u_t: jax.Array


class Prediction(enum.StrEnum):
    """What a network predicts, or in what a loss is measured."""

    VELOCITY = "velocity"
    X1 = "x1"
    X0 = "x0"
    SCORE = "score"


@dataclass(frozen=True)
class AffinePath:
    """`x_t = alpha(t) x1 + sigma(t) x0`, with `u_t = dx_t/dt`.

    Attributes:
        schedule: alpha and sigma.
        min_divisor: Least sigma by which a predicted x1 is divided to make a velocity of it, which
            has no limit where sigma vanishes. 0 keeps the conversion exact; JiT uses 0.05. No
            other conversion depends on it.

    Source: Lipman et al. 2022, arXiv:2210.02747, section 4; Li and He 2025, arXiv:2511.13720
    (`min_divisor`).
    """

    schedule: AnySchedule = Linear()
    min_divisor: float = 0.0

    def __post_init__(self) -> None:
        require_numbers(self, "path.")
        require_at_least("min_divisor", self.min_divisor, 0.0)

    def __call__(self, t: Times, x0: Points, x1: Points) -> PathSample:
        """Give the point at time t on the way from x0 to x1, and its velocity.

        Raises:
            ValueError: If x0 is not shaped like x1: broadcasting would pair the wrong points.
        """
        require(x0.shape == x1.shape, "x0", f"have the shape of x1, {x1.shape}", x0.shape)
        alpha, alpha_rate = with_rate(self.schedule.alpha, expand_like(t, x1))
        sigma, sigma_rate = with_rate(self.schedule.sigma, expand_like(t, x1))
        return PathSample(
            x_t=alpha * x1 + sigma * x0,
            u_t=alpha_rate * x1 + sigma_rate * x0,
        )

    def start(self, noise: Points) -> Points:
        """Where sampling begins at t = 0: standard normal noise times sigma(0).

        That is 1 for most schedules and sigma_max for `VarianceExploding`. What alpha(0) would
        add of the data is left out: it is zero, or nothing beside the noise.
        """
        return self.schedule.sigma(jnp.zeros((), noise.dtype)) * noise

    def convert(
        self, t: Times, x_t: Points, value: Points, *, source: Prediction, target: Prediction
    ) -> Points:
        """Turn one quantity at `(t, x_t)` into another.

        Args:
            t: Times in [0, 1], ends included.
            x_t: Points on the path.
            value: The quantity `source` there, shaped like x_t.
            source: What `value` is.
            target: What is wanted.

        Returns:
            The quantity `target`: exact where x_t and `value` determine it, else its mean for
            standard normal data (see the module). Finite for every t.
        """
        if source == target:
            return value
        on_point, on_value = self.conversion_weights(t, source=source, target=target)
        return expand_like(on_point, x_t) * x_t + expand_like(on_value, x_t) * value

    def conversion_weights(
        self, t: Times, *, source: Prediction, target: Prediction
    ) -> tuple[Times, Times]:
        """The weights `(c_x, c_q)` of `target = c_x x_t + c_q source`, each `[batch]`."""
        if source == target:
            return jnp.zeros_like(t), jnp.ones_like(t)
        on_point, on_value, divisor = self._quotients(t, source, target)
        known = divisor > jnp.finfo(divisor.dtype).tiny
        # The divisor is replaced before it is used: a gradient passes both branches.
        divisor = jnp.where(known, divisor, 1.0)
        unknown = self._normal_mean(t, target)
        return (
            jnp.where(known, on_point / divisor, unknown),
            jnp.where(known, on_value, 0.0) / divisor,
        )

    def away_from_poles(self, t: Times, *, source: Prediction, target: Prediction) -> Times:
        """The times, at least 0.001 from an end at which the weight of `source` is infinite.

        Beyond that, an error of a network is magnified more than 1,000 times on the linear path.
        """
        if source == target:
            return t
        ends = jnp.array([0.0, 1.0], t.dtype)
        _, on_value, divisor = self._quotients(ends, source, target)
        at_start, at_end = (divisor <= jnp.finfo(divisor.dtype).tiny) & (on_value != 0.0)
        t = jnp.where(at_start, jnp.maximum(t, _EDGE), t)
        return jnp.where(at_end, jnp.minimum(t, 1.0 - _EDGE), t)

    def _quotients(
        self, t: Times, source: Prediction, target: Prediction
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`(n_x, n_q, d)` with `target = (n_x x_t + n_q source) / d` and d >= 0."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if {source, target} == {Prediction.X0, Prediction.SCORE}:
            ones = jnp.ones_like(t)
            on_value, divisor = (-ones, sigma) if source == Prediction.X0 else (-sigma, ones)
            return jnp.zeros_like(t), on_value, divisor
        q1, q0, q_unit = self._row(t, source)
        r1, r0, r_unit = self._row(t, target)
        divisor = sigma * q1 - alpha * q0
        if (source, target) == (Prediction.X1, Prediction.VELOCITY):  # JiT's bound.
            divisor = jnp.maximum(divisor, self.min_divisor)
        sign = jnp.sign(r_unit) if target == Prediction.X0 else 1.0
        on_point = sign * (r0 * q1 - r1 * q0)
        on_value = sign * (sigma * r1 - alpha * r0) * q_unit
        return on_point, on_value, divisor * jnp.abs(r_unit)

    def _normal_mean(self, t: Times, quantity: Prediction) -> jax.Array:
        """The weight on x_t of the quantity's mean, given x_t, if data are standard normal."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        variance = jnp.square(alpha) + jnp.square(sigma)
        if quantity == Prediction.SCORE:
            return -1.0 / variance
        on_x1, on_x0, unit = self._row(t, quantity)
        return (alpha * on_x1 + sigma * on_x0) / (variance * unit)

    def _row(self, t: Times, quantity: Prediction) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Weights on x1 and x0 of `unit * quantity`, with the unit chosen so that D >= 0.

        Source and score are both taken as -x0: units -1 and sigma.
        """
        zero, one = jnp.zeros_like(t), jnp.ones_like(t)
        if quantity == Prediction.VELOCITY:
            return with_rate(self.schedule.alpha, t)[1], with_rate(self.schedule.sigma, t)[1], one
        if quantity == Prediction.X1:
            return one, zero, one
        return zero, -one, -one if quantity == Prediction.X0 else self.schedule.sigma(t)

    def velocity_fn(
        self, predict_fn: Callable[..., Points], prediction: Prediction = Prediction.VELOCITY
    ) -> VelocityFn:
        """The velocity field of a network that predicts any of the four quantities.

        Within 0.001 of an end at which the conversion has no limit (noise at t = 0, data at t = 1
        of the linear path) the field is the one 0.001 from it: an error of the network, however
        small, would make it infinite. An exact network's points move by about 1e-6 otherwise.
        """
        if prediction == Prediction.VELOCITY:
            return predict_fn
        kinds = dict(source=prediction, target=Prediction.VELOCITY)

        def velocity(t: Times, x: Points, cond: Cond = None) -> Points:
            t = self.away_from_poles(t, **kinds)
            return self.convert(t, x, predict_fn(t, x, cond), **kinds)

        return CountedField(
            velocity, lambda t: evaluations(predict_fn, self.away_from_poles(t, **kinds))
        )


def change_schedule(velocity_fn: VelocityFn, trained: Schedule, wanted: Schedule) -> VelocityFn:
    """A field trained under one schedule, as the field of another: same samples, other paths.

    With t(r) the time at which `trained` has the signal-to-noise ratio that `wanted` has
    at r, and c(r) the ratio of their scales there, points are `x'_r = c x_t` and so

        u'(r, x') = (c' / c) x' + c t' u(t, x' / c).

    Sampling begins at sigma(0) of `wanted` times normal noise (`AffinePath.start`). A ratio that
    `trained` never reaches gives its nearest end. The field costs at r what
    `velocity_fn` costs at t(r).

    Source: Lipman et al. 2024, arXiv:2412.06264, section 4 (change of scheduler after training).
    """

    def scale(schedule: Schedule) -> Callable[[jax.Array], jax.Array]:
        return lambda t: jnp.hypot(schedule.alpha(t), schedule.sigma(t))

    def trained_time(r: Times) -> Times:
        # At angle 0 a polynomial schedule stands still and t' u is infinity times zero; its
        # limit is had to float precision where the signal is 1e-7 of the noise.
        return time_at_angle(trained, jnp.maximum(angle(wanted, r), 1e-7))

    def changed(r: Times, x: Points, cond: Cond = None) -> Points:
        t = trained_time(r)
        _, wanted_angle_rate = with_rate(lambda t: angle(wanted, t), r)
        _, angle_rate = with_rate(lambda t: angle(trained, t), t)
        t_rate = wanted_angle_rate / angle_rate
        scale_wanted, scale_wanted_rate = with_rate(scale(wanted), r)
        scale_trained, scale_trained_rate = with_rate(scale(trained), t)
        c = scale_wanted / scale_trained
        c_rate_over_c = (
            scale_wanted_rate / scale_wanted - scale_trained_rate * t_rate / scale_trained
        )
        velocity = velocity_fn(t, x / expand_like(c, x), cond)
        return expand_like(c_rate_over_c, x) * x + expand_like(c * t_rate, x) * velocity

    return CountedField(changed, lambda r: evaluations(velocity_fn, trained_time(r)))


def require_conversion(path: Any, prediction: Any) -> None:
    """Raise unless `path` is an `AffinePath`, and `prediction` something that it converts."""
    require(isinstance(path, AffinePath), "path", "be an AffinePath", described(path))
    known = isinstance(prediction, str) and prediction in set(Prediction)
    require(known, "prediction", f"be one of {', '.join(Prediction)}", described(prediction))
