"""Exact counts of network evaluations, kept where a rejected step cannot undo them.

Diffrax throws a rejected step's solver state away, but not the state of its step-size
controller. So the controllers here wrap what decides the steps and keep the books.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from fmjax.solvers.engine.implicit import IMEX, PerSampleImplicit

# Step ends kept for `Samples.times`.
NUM_ENDS = 1024


class Nodes(NamedTuple):
    """At which times of a step [0, 1] a solver evaluates the field.

    Attributes:
        nodes: One per evaluation.
        reuses_first: The first node is at the start, and its value is known from the last
            accepted step (first same as last).
    """

    nodes: tuple[float, ...]
    reuses_first: bool


def nodes_of(solver: Any) -> Nodes | None:
    """When `solver` evaluates the field, None if only its root finder knows."""
    if isinstance(solver, PerSampleImplicit):
        return nodes_of(solver.inner)
    if isinstance(solver, (diffrax.Euler, diffrax.LeapfrogMidpoint)):
        return Nodes((0.0,), False)
    if isinstance(solver, diffrax.ReversibleHeun):
        return Nodes((0.0, 1.0), True)
    if isinstance(solver, IMEX):
        # The network is the explicit term; the implicit one is zero and costs nothing.
        tableaus: Any = solver.tableau.tableaus
        explicit = next(each for each in tableaus if not each.implicit)
        return Nodes((0.0, *map(float, explicit.c)), all(each.fsal for each in tableaus))
    if isinstance(solver, diffrax.AbstractERK):
        tableau: Any = solver.tableau
        return Nodes((0.0, *map(float, tableau.c)), tableau.fsal)
    return None


class SolveStats(NamedTuple):
    """Counts of a solve so far.

    Attributes:
        nfe: Network evaluations, `[batch]` or, of one sample, a scalar.
        num_accepted: Accepted steps.
        num_rejected: Rejected steps.
        ends: Ends of the accepted steps, then +inf.
    """

    nfe: jax.Array
    num_accepted: jax.Array
    num_rejected: jax.Array
    ends: jax.Array

    @classmethod
    def initial(cls, nfe: jax.Array, num_ends: int, dtype: Any) -> "SolveStats":
        """Before the first step, with room for `num_ends` ends."""
        count = jnp.zeros((), jnp.int32)
        return cls(nfe, count, count, jnp.full((num_ends,), jnp.inf, dtype))


class NFECountingController(diffrax.AbstractStepSizeController):
    """Decides as `inner` does and counts.

    Attributes:
        inner: Decides.
        opening: The books before the first step.
        cost: `cost(t) -> evaluations` of one call at time t.
        nodes: Of the solver, None if only its steps can tell.
        slope_known: The first step is given the slope at its start.
        counts_evaluations: Whether the solver is a `PerSampleImplicit`, whose error is the pair
            (error, evaluations).
    """

    inner: diffrax.AbstractStepSizeController
    initial: SolveStats
    cost: Callable[[jax.Array], jax.Array] = eqx.field(static=True)
    nodes: Nodes | None = eqx.field(static=True)
    slope_known: bool = eqx.field(static=True)
    counts_evaluations: bool = eqx.field(static=True)

    def wrap(self, direction: Any) -> "NFECountingController":
        """Diffrax asks; time always runs forwards here."""
        del direction
        return self

    def init(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Any,
        dt0: Any,
        args: Any,
        func: Any,
        error_order: Any,
    ) -> tuple[Any, Any]:
        """The first step's end, and the state."""
        t1, state = self.inner.init(terms, t0, t1, y0, dt0, args, func, error_order)
        return t1, (state, self.initial)

    def adapt_step_size(
        self,
        t0: Any,
        t1: Any,
        y0: Any,
        y1_candidate: Any,
        args: Any,
        y_error: Any,
        error_order: Any,
        controller_state: Any,
    ) -> Any:
        """What `inner` says, with the step entered in the books."""
        state, stats = controller_state
        y_error, evaluations = y_error if self.counts_evaluations else (y_error, 0)
        spent = self._spent(t0, t1, stats.num_accepted == 0, evaluations)
        keep, next_t0, next_t1, jump, state, result = self.inner.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, state
        )
        keep_array = jnp.asarray(keep)
        place = jnp.where(keep_array, stats.num_accepted, stats.ends.shape[0])
        stats = SolveStats(
            nfe=stats.nfe + spent,
            num_accepted=stats.num_accepted + keep_array,
            num_rejected=stats.num_rejected + ~keep_array,
            ends=stats.ends.at[place].set(t1, mode="drop"),
        )
        return keep, next_t0, next_t1, jump, (state, stats), result

    def _spent(
        self, t0: jax.Array, t1: jax.Array, before_first: jax.Array, evaluations: Any
    ) -> Any:
        if self.nodes is None:
            return evaluations.astype(jnp.int32)
        total = jnp.zeros_like(self.initial.nfe)
        for i, node in enumerate(self.nodes.nodes):
            # As Diffrax writes it, so that a time on the edge of an interval falls alike.
            cost = self.cost(t1 if node == 1.0 else t0 + node * (t1 - t0))
            if i == 0 and self.nodes.reuses_first:
                cost = jnp.where(before_first & (not self.slope_known), cost, 0)
            total = total + cost
        return total


class ToTimes(diffrax.AbstractStepSizeController):
    """Steps to the given times and accepts every step.

    As `diffrax.StepTo`, without its checks on the device: they cannot raise everywhere, and a
    grid padded with ones would fail them.
    """

    times: jax.Array

    def wrap(self, direction: Any) -> "ToTimes":
        """Diffrax asks; time always runs forwards here."""
        del direction
        return self

    def init(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Any,
        dt0: Any,
        args: Any,
        func: Any,
        error_order: Any,
    ) -> tuple[Any, Any]:
        """The first time, and the number of the next."""
        del terms, t0, t1, y0, dt0, args, func, error_order
        return self.times[1], jnp.asarray(2, jnp.int32)

    def adapt_step_size(
        self,
        t0: Any,
        t1: Any,
        y0: Any,
        y1_candidate: Any,
        args: Any,
        y_error: Any,
        error_order: Any,
        controller_state: Any,
    ) -> Any:
        """The next time."""
        del t0, y0, y1_candidate, args, y_error, error_order
        next_t1 = self.times[controller_state]  # past the end JAX gives the last
        return True, t1, next_t1, False, controller_state + 1, diffrax.RESULTS.successful
