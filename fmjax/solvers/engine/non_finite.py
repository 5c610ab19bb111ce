"""Adaptive steps where samples, or the field at t = 1, are not finite."""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from fmjax._arrays import event_axes, expand_like
from fmjax.solvers.engine.nfe_counter import StepDecision
from fmjax.solvers.steps import RealScalar

# In units in the last place (ulp) of t = 1. A sample that is not finite after a step shorter than
# this is given up. A rejection shortens a step at most five times, so the next step is still longer
# than `MIN_STEP_ULPS`.
GIVE_UP_STEP_ULPS = 256
# A step shorter than this ends the solve as failed, instead of `max_steps` rejections of a field
# that is not finite.
MIN_STEP_ULPS = 16
# After a step to t = 1 that was not finite, the next step ends this far before t = 1. The last step
# is then shorter than `GIVE_UP_STEP_ULPS`; if it is not finite either, the velocity at t = 1 is the
# cause. Larger than 50, below which Diffrax extends a step to t = 1.
_END_MARGIN_ULPS = 128


class Guarded(diffrax.AbstractStepSizeController):
    """A step size controller that marks samples that are not finite as failed.

    A sample fails if its points are not finite, or not finite after the shortest step.
    In a batch it is then ignored, so that the others continue; a single sample ends its solve. A
    velocity that is not finite at t = 1 ends the solve after a few steps, instead of rejecting
    ever shorter steps to t = 1.

    Attributes:
        inner: The controller that chooses the steps.
        batched: Whether points have a leading batch axis and all samples take the same steps.
    """

    inner: diffrax.AbstractStepSizeController
    batched: bool = eqx.field(static=True)

    def wrap(self, direction: int | jax.Array) -> "Guarded":
        """Return this controller: Diffrax requires the method, and time only runs forwards."""
        del direction
        return self

    def init(
        self,
        terms: diffrax.AbstractTerm,
        t0: RealScalar,
        t1: RealScalar,
        y0: PyTree,
        dt0: RealScalar | None,
        args: PyTree,
        func: Callable[..., PyTree],
        error_order: RealScalar | None,
    ) -> tuple[RealScalar, PyTree]:
        """Return the end of the first step, and (state of `inner`, whether t = 1 is blocked)."""
        t1, state = self.inner.init(terms, t0, t1, y0, dt0, args, func, error_order)
        return t1, (state, jnp.asarray(False))

    def adapt_step_size(
        self,
        t0: jax.Array,
        t1: jax.Array,
        y0: jax.Array,
        y1_candidate: jax.Array,
        args: PyTree,
        y_error: jax.Array,
        error_order: RealScalar,
        controller_state: PyTree,
    ) -> StepDecision:
        """Return the decision of `inner` without samples given up and blocked steps to t = 1."""
        state, blocked = controller_state
        eps = float(jnp.finfo(y0.dtype).eps)
        axes = event_axes(y0) if self.batched else None
        was_finite = jnp.all(jnp.isfinite(y0), axis=axes)
        fails = ~jnp.all(jnp.isfinite(y1_candidate) & jnp.isfinite(y_error), axis=axes)
        given_up = ~was_finite | (fails & (t1 - t0 < GIVE_UP_STEP_ULPS * eps))
        blocked |= (t1 >= 1.0) & jnp.any(fails & was_finite)
        if self.batched:
            y0, y1_candidate, y_error = (
                jnp.where(expand_like(given_up, a), 0.0, a) for a in (y0, y1_candidate, y_error)
            )
        keep, next_t0, next_t1, jump, state, result = self.inner.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, state
        )
        before_end = 1.0 - _END_MARGIN_ULPS * eps
        next_t1 = jnp.where(
            blocked & (next_t0 < before_end), jnp.minimum(next_t1, before_end), next_t1
        )
        if not self.batched:
            result = diffrax.RESULTS.where(given_up, diffrax.RESULTS.dt_min_reached, result)
        return keep, next_t0, next_t1, jump, (state, blocked), result
