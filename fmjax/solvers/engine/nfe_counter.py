"""Exact counts of network evaluations, which include those of rejected steps.

Diffrax discards the solver state of a rejected step, but not the state of its step size
controller. The controllers here wrap another controller and keep the counts in their state.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from fmjax.solvers.engine.implicit import IMEX, PerSampleImplicit
from fmjax.solvers.steps import RealScalar

# Number of step ends kept in `SolveStats.step_ends`.
NUM_ENDS = 1024

_BoolScalar: TypeAlias = bool | jax.Array | np.ndarray
StepDecision: TypeAlias = tuple[
    _BoolScalar, RealScalar, RealScalar, _BoolScalar, PyTree, diffrax.RESULTS
]
"""Decision of a step size controller: whether to accept the step, start and end of the next step,
whether a discontinuity was passed, the controller state, and the result code."""


class Nodes(NamedTuple):
    """Times within a step [0, 1] at which a solver evaluates the field.

    Attributes:
        nodes: Time of each evaluation.
        reuses_first: Whether the first node is at the start of the step and its value is known
            from the last accepted step (first same as last, FSAL).
    """

    nodes: tuple[float, ...]
    reuses_first: bool


def nodes_of(solver: diffrax.AbstractSolver) -> Nodes | None:
    """Return the times at which `solver` evaluates the field, None if its root finder decides."""
    if isinstance(solver, PerSampleImplicit):
        return nodes_of(solver.inner)
    if isinstance(solver, (diffrax.Euler, diffrax.LeapfrogMidpoint)):
        return Nodes((0.0,), False)
    if isinstance(solver, diffrax.ReversibleHeun):
        return Nodes((0.0, 1.0), True)
    if isinstance(solver, IMEX):
        # The network is the explicit term; the implicit term is zero and costs nothing.
        tableaus = cast(diffrax.MultiButcherTableau, solver.tableau).tableaus
        explicit = next(tableau for tableau in tableaus if not tableau.implicit)
        return Nodes((0.0, *map(float, explicit.c)), all(tableau.fsal for tableau in tableaus))
    if isinstance(solver, diffrax.AbstractERK):
        tableau = cast(diffrax.ButcherTableau, solver.tableau)
        return Nodes((0.0, *map(float, tableau.c)), tableau.fsal)
    return None


class SolveCounts(NamedTuple):
    """Counts of network evaluations and steps so far.

    Attributes:
        nfe: Network evaluations, `[batch]`, or a scalar for a single sample.
        num_accepted: Number of accepted steps.
        num_rejected: Number of rejected steps.
        ends: End times of the accepted steps, padded with +inf.
    """

    nfe: jax.Array
    num_accepted: jax.Array
    num_rejected: jax.Array
    ends: jax.Array

    @classmethod
    def initial(cls, nfe: jax.Array, num_ends: int, dtype: np.dtype) -> "SolveCounts":
        """Make the counts before the first step, with space for `num_ends` end times."""
        count = jnp.zeros((), jnp.int32)
        return cls(nfe, count, count, jnp.full((num_ends,), jnp.inf, dtype))


class NFECountingController(diffrax.AbstractStepSizeController):
    """A step size controller that decides as `inner` does and counts evaluations and steps.

    Attributes:
        inner: Controller that chooses the steps.
        initial: Counts before the first step.
        cost: Network evaluations `cost(t)` of one call at time t.
        nodes: Evaluation times of the solver, None if the solver counts its evaluations.
        slope_known: Whether the first step starts from a slope that is already evaluated.
        counts_evaluations: Whether the solver is a `PerSampleImplicit`, which returns the pair
            (error, evaluations) in the place of its error.
    """

    inner: diffrax.AbstractStepSizeController
    initial: SolveCounts
    cost: Callable[[jax.Array], jax.Array] = eqx.field(static=True)
    nodes: Nodes | None = eqx.field(static=True)
    slope_known: bool = eqx.field(static=True)
    counts_evaluations: bool = eqx.field(static=True)

    def wrap(self, direction: int | jax.Array) -> "NFECountingController":
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
        """Return the end of the first step, and (the state of `inner`, the counts)."""
        t1, state = self.inner.init(terms, t0, t1, y0, dt0, args, func, error_order)
        return t1, (state, self.initial)

    def adapt_step_size(
        self,
        t0: jax.Array,
        t1: jax.Array,
        y0: PyTree,
        y1_candidate: PyTree,
        args: PyTree,
        y_error: PyTree,
        error_order: RealScalar,
        controller_state: PyTree,
    ) -> StepDecision:
        """Return the decision of `inner`, and add the step to the counts."""
        state, stats = controller_state
        y_error, evaluations = y_error if self.counts_evaluations else (y_error, jnp.int32(0))
        step_nfe = self._step_nfe(t0, t1, stats.num_accepted == 0, evaluations)
        keep, next_t0, next_t1, jump, state, result = self.inner.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, state
        )
        keep_array = jnp.asarray(keep)
        index = jnp.where(keep_array, stats.num_accepted, stats.ends.shape[0])
        stats = SolveCounts(
            nfe=stats.nfe + step_nfe,
            num_accepted=stats.num_accepted + keep_array,
            num_rejected=stats.num_rejected + ~keep_array,
            ends=stats.ends.at[index].set(t1, mode="drop"),
        )
        return keep, next_t0, next_t1, jump, (state, stats), result

    def _step_nfe(
        self, t0: jax.Array, t1: jax.Array, is_first: jax.Array, evaluations: jax.Array
    ) -> jax.Array:
        """Count the network evaluations of the step from t0 to t1."""
        if self.nodes is None:
            return evaluations.astype(jnp.int32)
        total = jnp.zeros_like(self.initial.nfe)
        for i, node in enumerate(self.nodes.nodes):
            # The same expression as in Diffrax, so that a time at the edge of a guidance interval
            # is rounded to the same side.
            cost = self.cost(t1 if node == 1.0 else t0 + node * (t1 - t0))
            if i == 0 and self.nodes.reuses_first:
                cost = jnp.where(is_first & (not self.slope_known), cost, 0)
            total = total + cost
        return total


class ToTimes(diffrax.AbstractStepSizeController):
    """A step size controller that steps to given times and accepts every step.

    Like `diffrax.StepTo`, without its checks at run time, which cannot raise on every device and
    would refuse a grid padded with ones.
    """

    times: jax.Array

    def wrap(self, direction: int | jax.Array) -> "ToTimes":
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
        """Return the end of the first step, and the index of the next time."""
        del terms, t0, t1, y0, dt0, args, func, error_order
        return self.times[1], jnp.asarray(2, jnp.int32)

    def adapt_step_size(
        self,
        t0: jax.Array,
        t1: jax.Array,
        y0: PyTree,
        y1_candidate: PyTree,
        args: PyTree,
        y_error: PyTree,
        error_order: RealScalar,
        controller_state: PyTree,
    ) -> StepDecision:
        """Accept the step, and make the next one end at the next time."""
        del t0, y0, y1_candidate, args, y_error, error_order
        next_t1 = self.times[controller_state]  # JAX clamps an index past the end to the last time.
        return True, t1, next_t1, False, controller_state + 1, diffrax.RESULTS.successful
