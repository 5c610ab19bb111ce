"""Affine probability paths, and conversions between velocity, x1, x0 and score.

On `x_t = a x1 + s x0` with time derivatives a', s', four quantities are equivalent:

    velocity  u  = a' x1 + s' x0          target  x1
    score        = -x0 / s                source  x0

Each is a linear combination of x1 and x0, given by a row of two weights; the row of x_t is (a, s).
A row r is a combination of x_t and any other row q, `r = c_x x_t + c_q q`. Solving the 2x2 linear
system gives

    D   = s q_1 - a q_0
    c_x = (r_0 q_1 - r_1 q_0) / D,    c_q = (s r_1 - a r_0) / D

where r_1 and r_0 are the weights of r on x1 and x0. This formula covers ten of the twelve
conversions; score and x0 differ only by a factor, so converting between them does not need x_t.

Conversions are exact wherever D > 0. D = 0 where q contains no information beyond x_t: x1
prediction at t = 1 of the linear path, x0 prediction at t = 0, velocity prediction where both rates
are zero (t = 0 of a polynomial path). There the result is the mean of r for standard normal data,

    E[r | x_t] = (a r_1 + s r_0) / (a^2 + s^2) x_t,

and q is not used. Where alpha = 0 or sigma = 0, x_t is pure noise or pure data, and this mean is
the limit of every conversion that has a limit. The others have no limit; the mean keeps them
finite.

Reference: Lipman et al. 2024, arXiv:2412.06264, section 4.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from fmjax._arrays import Cond, PerExample, Points, PRNGKey, Times, event_axes, expand_like
from fmjax._checks import require, require_at_least, require_numbers
from fmjax._inputs import describe
from fmjax._specs import Spec
from fmjax.paths.ddpm_schedules import CosineBetas, LinearBetas
from fmjax.paths.prediction import Prediction
from fmjax.paths.process import PathSample
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

# Distance that fields and losses keep from a pole of a conversion.
_EDGE = 1e-3


@dataclass(frozen=True)
class AffinePath:
    """Affine probability path `x_t = alpha(t) x1 + sigma(t) x0` with velocity `u_t = dx_t/dt`.

    x0 is standard normal noise. The points at t = 0, where sampling starts, are `sigma(0) x0`. It
    is a `VelocityProcess`.

    Attributes:
        schedule: The functions alpha and sigma.
        min_divisor: Lower bound of the divisor sigma in the conversion from x1 to velocity, which
            diverges as sigma goes to 0. 0 keeps the conversion exact; JiT uses 0.05. No other
            conversion depends on it.

    Reference: Lipman et al. 2022, arXiv:2210.02747, section 4; Li and He 2025, arXiv:2511.13720
    (`min_divisor`).
    """

    schedule: AnySchedule | Schedule = Linear()
    min_divisor: float = 0.0

    def __post_init__(self) -> None:
        require_numbers(self, "path.")
        require_at_least("min_divisor", self.min_divisor, 0.0)

    def __call__(self, t: Times, x0: Points, x1: Points) -> PathSample:
        """Return the points at time t between x0 and x1, and their conditional velocities.

        Args:
            t: Times in [0, 1].
            x0: Standard normal noise. `interpolate` takes source points instead, which differ by
                the factor sigma(0).
            x1: Data points, shaped like `x0`.

        Raises:
            ValueError: If x0 and x1 differ in shape; broadcasting would pair the wrong points.
        """
        require(x0.shape == x1.shape, "x0", f"have the shape of x1, {x1.shape}", x0.shape)
        alpha, alpha_rate = with_rate(self.schedule.alpha, expand_like(t, x1))
        sigma, sigma_rate = with_rate(self.schedule.sigma, expand_like(t, x1))
        return PathSample(
            x_t=alpha * x1 + sigma * x0,
            target=alpha_rate * x1 + sigma_rate * x0,
        )

    def sample_source(self, keys: jax.Array, spec: Spec) -> Points:
        """Sample N(0, sigma(0)^2 I), one float32 point of shape `spec.shape` per key."""
        noise = jax.vmap(lambda key: jax.random.normal(key, spec.shape, jnp.float32))(keys)
        return self.start(noise)

    def interpolate(self, key: PRNGKey, t: Times, x0: Points, x1: Points) -> PathSample:
        """Return the points at time t between source points x0 and x1, and their velocities.

        Args:
            key: Not used: the path is deterministic.
            t: Times in [0, 1].
            x0: Source points, such as those of `sample_source`: sigma(0) times the noise.
            x1: Data points, shaped like `x0`.
        """
        del key
        return self(t, self.noise(x0), x1)

    def source_log_density(self, x0: Points) -> PerExample:
        """Compute the log-density of N(0, sigma(0)^2 I) in nats, `[batch]`."""
        noise, num_dims = self.noise(x0), math.prod(x0.shape[1:])
        square = jnp.sum(jnp.square(noise), axis=event_axes(noise))
        scale = self.schedule.sigma(jnp.zeros((), noise.dtype))
        return -0.5 * square - num_dims * (jnp.log(scale) + 0.5 * math.log(2.0 * math.pi))

    def start(self, noise: Points) -> Points:
        """Scale standard normal noise to the source distribution at t = 0: `sigma(0) * noise`.

        sigma(0) is 1 for most schedules and sigma_max for `VarianceExploding`. The data term
        alpha(0) x1 is omitted: it is zero or negligible compared with the noise.
        """
        return self.schedule.sigma(jnp.zeros((), noise.dtype)) * noise

    def noise(self, x0: Points) -> Points:
        """Divide source points by sigma(0), the inverse of `start`."""
        dtype = jnp.result_type(x0.dtype, jnp.float32)
        return x0 / self.schedule.sigma(jnp.zeros((), dtype))

    def convert(
        self, t: Times, x_t: Points, value: Points, *, from_: Prediction, to: Prediction
    ) -> Points:
        """Convert one quantity at `(t, x_t)` to another, such as a predicted x1 to a velocity.

        Args:
            t: Times in [0, 1], including both ends.
            x_t: Points on the path.
            value: The quantity `from_` at these points, shaped like x_t.
            from_: Quantity that `value` holds.
            to: Quantity to return.

        Returns:
            The quantity `to`: exact where x_t and `value` determine it, otherwise its mean
            for standard normal data (see the module docstring). Finite for every t.
        """
        if from_ == to:
            return value
        on_point, on_value = self.conversion_weights(t, from_=from_, to=to)
        return expand_like(on_point, x_t) * x_t + expand_like(on_value, x_t) * value

    def conversion_weights(
        self, t: Times, *, from_: Prediction, to: Prediction
    ) -> tuple[Times, Times]:
        """Return the weights `(c_x, c_q)` of `to = c_x x_t + c_q from_`, each `[batch]`."""
        if from_ == to:
            return jnp.zeros_like(t), jnp.ones_like(t)
        on_point, on_value, divisor = self._quotients(t, from_, to)
        known = divisor > jnp.finfo(divisor.dtype).tiny
        # Replace the divisor before dividing: gradients flow through both branches of `where`.
        divisor = jnp.where(known, divisor, 1.0)
        unknown = self._normal_mean(t, to)
        return (
            jnp.where(known, on_point / divisor, unknown),
            jnp.where(known, on_value, 0.0) / divisor,
        )

    def away_from_poles(self, t: Times, *, from_: Prediction, to: Prediction) -> Times:
        """Move times to at least 0.001 from an end where the weight of `from_` is infinite.

        Closer to such an end, the linear path amplifies network errors more than 1,000 times.
        """
        if from_ == to:
            return t
        ends = jnp.array([0.0, 1.0], t.dtype)
        _, on_value, divisor = self._quotients(ends, from_, to)
        at_start, at_end = (divisor <= jnp.finfo(divisor.dtype).tiny) & (on_value != 0.0)
        t = jnp.where(at_start, jnp.maximum(t, _EDGE), t)
        return jnp.where(at_end, jnp.minimum(t, 1.0 - _EDGE), t)

    def _quotients(
        self, t: Times, from_: Prediction, to: Prediction
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return `(n_x, n_q, d)` with `to = (n_x x_t + n_q from_) / d` and d >= 0."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if {from_, to} == {Prediction.X0, Prediction.SCORE}:
            ones = jnp.ones_like(t)
            on_value, divisor = (-ones, sigma) if from_ == Prediction.X0 else (-sigma, ones)
            return jnp.zeros_like(t), on_value, divisor
        q1, q0, q_unit = self._row(t, from_)
        r1, r0, r_unit = self._row(t, to)
        divisor = sigma * q1 - alpha * q0
        if (from_, to) == (Prediction.X1, Prediction.VELOCITY):  # The bound of JiT.
            divisor = jnp.maximum(divisor, self.min_divisor)
        sign = jnp.sign(r_unit) if to == Prediction.X0 else 1.0
        on_point = sign * (r0 * q1 - r1 * q0)
        on_value = sign * (sigma * r1 - alpha * r0) * q_unit
        return on_point, on_value, divisor * jnp.abs(r_unit)

    def _normal_mean(self, t: Times, quantity: Prediction) -> jax.Array:
        """Return c with `E[quantity | x_t] = c x_t` for standard normal data."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        variance = jnp.square(alpha) + jnp.square(sigma)
        if quantity == Prediction.SCORE:
            return -1.0 / variance
        on_x1, on_x0, unit = self._row(t, quantity)
        return (alpha * on_x1 + sigma * on_x0) / (variance * unit)

    def _row(self, t: Times, quantity: Prediction) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the weights on x1 and x0 of `unit * quantity`, and the unit, chosen for D >= 0.

        x0 and the score are both represented by -x0, with units -1 and sigma.
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
        """Return the velocity field of a network that predicts any of the four quantities.

        Within 0.001 of an end where the conversion has no limit (x0 prediction at t = 0 and x1
        prediction at t = 1 of the linear path), the field is evaluated 0.001 from that end, because
        the conversion would amplify any network error without bound. For an exact network this
        moves samples by about 1e-6.

        Args:
            predict_fn: Network `(t, x, cond) -> prediction`, shaped like x.
            prediction: Quantity that `predict_fn` returns.
        """
        if prediction == Prediction.VELOCITY:
            return predict_fn
        conversion = dict(from_=prediction, to=Prediction.VELOCITY)

        def velocity(t: Times, x: Points, cond: Cond = None) -> Points:
            t = self.away_from_poles(t, **conversion)
            return self.convert(t, x, predict_fn(t, x, cond), **conversion)

        return CountedField(
            velocity, lambda t: evaluations(predict_fn, self.away_from_poles(t, **conversion))
        )


def change_schedule(velocity_fn: VelocityFn, trained: Schedule, target: Schedule) -> VelocityFn:
    """Convert a velocity field trained with one schedule to another schedule.

    The samples at t = 1 stay the same; the trajectories differ. Let t(r) be the time at which
    `trained` has the signal-to-noise ratio of `target` at r, and c(r) the ratio of their scales
    `sqrt(alpha^2 + sigma^2)`. Then `x'_r = c x_t` and

        u'(r, x') = (c' / c) x' + c t' u(t, x' / c).

    A call at r costs as many network evaluations as `velocity_fn` at t(r).

    Args:
        velocity_fn: Velocity field under the schedule `trained`.
        trained: Schedule of `velocity_fn`. Signal-to-noise ratios that it does not reach are
            mapped to its nearest end.
        target: Schedule of the returned field. Sampling starts from its sigma(0) times standard
            normal noise (`AffinePath.start`).

    Reference: Lipman et al. 2024, arXiv:2412.06264, section 4 (change of scheduler after
    training).
    """

    def scale(schedule: Schedule) -> Callable[[jax.Array], jax.Array]:
        return lambda t: jnp.hypot(schedule.alpha(t), schedule.sigma(t))

    def trained_time(r: Times) -> Times:
        # At angle 0 the rate of a polynomial schedule is zero and t' u is infinity times zero. A
        # signal of 1e-7 of the noise gives the limit to float precision.
        return time_at_angle(trained, jnp.maximum(angle(target, r), 1e-7))

    def velocity(r: Times, x: Points, cond: Cond = None) -> Points:
        t = trained_time(r)
        _, target_angle_rate = with_rate(lambda t: angle(target, t), r)
        _, trained_angle_rate = with_rate(lambda t: angle(trained, t), t)
        t_rate = target_angle_rate / trained_angle_rate
        target_scale, target_scale_rate = with_rate(scale(target), r)
        trained_scale, trained_scale_rate = with_rate(scale(trained), t)
        c = target_scale / trained_scale
        c_rate_over_c = (
            target_scale_rate / target_scale - trained_scale_rate * t_rate / trained_scale
        )
        trained_velocity = velocity_fn(t, x / expand_like(c, x), cond)
        return expand_like(c_rate_over_c, x) * x + expand_like(c * t_rate, x) * trained_velocity

    return CountedField(velocity, lambda r: evaluations(velocity_fn, trained_time(r)))


def require_conversion(path: object, prediction: object) -> None:
    """Raise unless `path` is an `AffinePath` and `prediction` is one of `Prediction`."""
    require(isinstance(path, AffinePath), "path", "be an AffinePath", describe(path))
    known = isinstance(prediction, str) and prediction in set(Prediction)
    require(known, "prediction", f"be one of {', '.join(Prediction)}", describe(prediction))
