"""Diffrax's implicit solvers for batches: one root per sample, with exact evaluation counts.

Diffrax alone would find one root for the entire batch, with a dense Jacobian of (batch * size)^2
numbers that is zero outside its diagonal blocks, and would not report how often the root finder
evaluates the field. Here the step of one sample is mapped over the batch. Where the field is the
implicit term, the unknowns of a sample are extended by one number, the counter, in which the root
finder returns its number of iterations for each stage.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jaxtyping import PyTree

from fmjax._arrays import Cond
from fmjax._checks import require
from fmjax.solvers.steps import AdaptiveSteps, FixedSteps, RealScalar

IMEX = (diffrax.KenCarp3, diffrax.KenCarp4, diffrax.KenCarp5, diffrax.Sil3)
# Smallest tolerance of a root finder in units of eps. Below it, rounding hides its progress.
_MIN_ROOT_TOLERANCE_EPS = 1e4
# A root finder has converged when its update is smaller than this fraction of the tolerance.
_CONVERGED_FRACTION = 0.1


class _IterationCounter(optimistix.AbstractRootFinder):
    """A root finder that returns the iterations of `inner` in the counter of (points, counter).

    Attributes:
        inner: Chord method that finds the roots.
        rtol: Relative tolerance of `inner`.
        atol: Absolute tolerance of `inner`.
        norm: Norm of `inner`.
    """

    inner: optimistix.AbstractRootFinder
    rtol: RealScalar
    atol: RealScalar
    norm: Callable[[PyTree], RealScalar]

    def init(
        self,
        fn: Callable[..., PyTree],
        y: PyTree,
        args: PyTree,
        options: dict[str, Any],
        f_struct: PyTree,
        aux_struct: PyTree,
        tags: frozenset[object],
    ) -> PyTree:
        """Return the initial state of `inner`."""
        return self.inner.init(fn, y, args, options, f_struct, aux_struct, tags)

    def step(
        self,
        fn: Callable[..., PyTree],
        y: PyTree,
        args: PyTree,
        options: dict[str, Any],
        state: PyTree,
        tags: frozenset[object],
    ) -> tuple[PyTree, PyTree, PyTree]:
        """Take one iteration of `inner`."""
        return self.inner.step(fn, y, args, options, state, tags)

    def terminate(
        self,
        fn: Callable[..., PyTree],
        y: PyTree,
        args: PyTree,
        options: dict[str, Any],
        state: PyTree,
        tags: frozenset[object],
    ) -> tuple[jax.Array, optimistix.RESULTS]:
        """Decide as `inner` whether to stop, but treat two of its failures as success.

        Diffrax 0.7.2 reports divergence, which ends the search, if the second iteration has not
        converged: here the search continues. A small update that no longer shrinks is rounding,
        which also occurs when the first guess is as good as floats allow.
        """
        done, result = self.inner.terminate(fn, y, args, options, state, tags)
        failed = done & ~(state.diffsize < _CONVERGED_FRACTION)
        return done, optimistix.RESULTS.where(failed, result, optimistix.RESULTS.successful)

    def postprocess(
        self,
        fn: Callable[..., PyTree],
        y: PyTree,
        aux: PyTree,
        args: PyTree,
        options: dict[str, Any],
        state: PyTree,
        tags: frozenset[object],
        result: optimistix.RESULTS,
    ) -> tuple[PyTree, PyTree, dict[str, Any]]:
        """Return the number of iterations, each of which is one evaluation, in the counter."""
        y, aux, stats = self.inner.postprocess(fn, y, aux, args, options, state, tags, result)
        points, counter = y
        return (points, state.step.astype(counter.dtype)), aux, stats


class PerSampleImplicit(diffrax.AbstractAdaptiveSolver):
    """An implicit solver that steps each sample separately, all over the same interval.

    Attributes:
        inner: Implicit solver of a single sample.
        field: Velocity field `field(t, x, cond)` of a single sample.
        cost: Network evaluations `cost(t)` of one call at time t.
        batched: Whether points have a leading batch axis.
    """

    inner: diffrax.AbstractImplicitSolver
    field: Callable[..., jax.Array] = eqx.field(static=True)
    cost: Callable[[jax.Array], jax.Array] = eqx.field(static=True)
    batched: bool = eqx.field(static=True)

    term_structure: ClassVar = diffrax.AbstractTerm

    @property
    def interpolation_cls(  # pyright: ignore
        self,
    ) -> Callable[..., diffrax.AbstractLocalInterpolation]:
        """The interpolation of `inner`."""
        return self.inner.interpolation_cls

    @property
    def counts_evaluations(self) -> bool:
        """Whether the field is the implicit term, so that the root finder counts evaluations."""
        return not isinstance(self.inner, IMEX)

    @property
    def _terms(self) -> diffrax.AbstractTerm:
        if not self.counts_evaluations:
            # The entire field is the explicit term.
            zero = diffrax.ODETerm(lambda t, x, cond: jnp.zeros_like(x))
            return diffrax.MultiTerm(diffrax.ODETerm(self.field), zero)

        def field_and_counter(
            t: RealScalar, state: tuple[jax.Array, jax.Array], cond: Cond
        ) -> tuple[jax.Array, jax.Array]:
            x, counter = state
            return self.field(t, x, cond), jnp.zeros_like(counter)

        return diffrax.ODETerm(field_and_counter)

    def order(self, terms: diffrax.AbstractTerm) -> int | None:
        """Return the order of `inner`."""
        del terms
        return self.inner.order(self._terms)

    def error_order(self, terms: diffrax.AbstractTerm) -> RealScalar | None:
        """Return the order of the error estimate of `inner`."""
        del terms
        return self.inner.error_order(self._terms)

    def _state(self, x: jax.Array) -> PyTree:
        return (x, jnp.zeros((), x.dtype)) if self.counts_evaluations else x

    def init(
        self,
        terms: diffrax.AbstractTerm,
        t0: RealScalar,
        t1: RealScalar,
        y0: jax.Array,
        args: Cond,
    ) -> PyTree:
        """Return the initial state of `inner` for each sample."""
        del terms

        def init_one(x: jax.Array, cond: Cond) -> PyTree:
            return self.inner.init(self._terms, t0, t1, self._state(x), cond)

        return jax.vmap(init_one)(y0, args) if self.batched else init_one(y0, args)

    def step(
        self,
        terms: diffrax.AbstractTerm,
        t0: jax.Array,
        t1: jax.Array,
        y0: jax.Array,
        args: Cond,
        solver_state: PyTree,
        made_jump: bool | jax.Array,
    ) -> tuple[jax.Array, PyTree, dict[str, PyTree], PyTree, diffrax.RESULTS]:
        """Step each sample; error and x1 are infinite for samples whose root is not found.

        The error is the pair (error, evaluations), as `NFECountingController` expects.
        """
        del terms, made_jump

        def step_one(
            x: jax.Array, cond: Cond, memory: PyTree
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array], PyTree, PyTree]:
            y1, error, dense, new_memory, result = self.inner.step(
                self._terms, t0, t1, self._state(x), cond, memory, False
            )
            assert error is not None  # Diffrax's implicit solvers estimate their errors.
            k: PyTree = dense.get("k")
            nfe = jnp.zeros((), jnp.int32)
            if self.counts_evaluations:
                stages = None if k is None else k[1]
                nfe = self._step_nfe(t0, t1, x.size, y1[1], stages, memory)
                y1, error, k = y1[0], error[0], None if k is None else k[0]
            y1 = jnp.where(result == diffrax.RESULTS.successful, y1, jnp.inf)
            return y1, (error, nfe), new_memory, k

        if self.batched:
            step_one = jax.vmap(step_one, out_axes=(0, 0, 0, 1))
        y1, error, memory, k = step_one(y0, args, solver_state)
        dense = {"y0": y0, "y1": y1} | ({} if k is None else {"k": k})
        return y1, error, dense, memory, diffrax.RESULTS.successful

    def _step_nfe(
        self,
        t0: jax.Array,
        t1: jax.Array,
        size: int,
        counter: jax.Array,
        stages: jax.Array | None,
        memory: PyTree,
    ) -> jax.Array:
        """Count the evaluations of one step: those of all iterations and of the Jacobians.

        A Jacobian takes one evaluation for its call and one for the derivative along each
        dimension, including that of the counter.

        Args:
            t0: Start of the step.
            t1: End of the step.
            size: Number of dimensions of a sample.
            counter: Counter at the end of the step.
            stages: Counter at each stage, times the step size, or None for `ImplicitEuler`.
            memory: State of the solver before the step.
        """
        jacobian_nfe = size + 2
        if stages is None:  # ImplicitEuler: one call at t0, one Jacobian and one root at t1.
            return self.cost(t0) + (jacobian_nfe + _rounded(counter)) * self.cost(t1)
        # ESDIRK: Diffrax computes a Jacobian at t0 and replaces it by one at the second stage. The
        # first stage is known from the last step, except in the first step.
        h = t1 - t0
        tableau = cast(diffrax.ButcherTableau, cast(diffrax.AbstractDIRK, self.inner).tableau)
        costs = [self.cost(t1 if c == 1.0 else t0 + float(c) * h) for c in tableau.c]
        costs = jnp.stack([self.cost(t0), *costs])
        is_first_step, _ = memory
        iterations = _rounded(stages / h)
        iterations = iterations.at[0].multiply(is_first_step)
        return jacobian_nfe * (costs[0] + costs[1]) + jnp.sum(iterations * costs)

    def func(self, terms: diffrax.AbstractTerm, t0: RealScalar, y0: PyTree, args: Cond) -> PyTree:
        """Evaluate the field; an interface that Diffrax requires."""
        return terms.vf(t0, y0, args)


def _rounded(number: jax.Array) -> jax.Array:
    return jnp.round(number).astype(jnp.int32)


def each_sample(
    solver: diffrax.AbstractImplicitSolver,
    field: Callable[..., jax.Array],
    cost: Callable[[jax.Array], jax.Array],
    steps: FixedSteps | AdaptiveSteps,
    norm: Callable[[jax.Array], jax.Array],
    dtype: np.dtype,
    *,
    batched: bool,
) -> PerSampleImplicit:
    """Wrap an implicit solver as a `PerSampleImplicit`, and set the tolerances of its root finder.

    Tolerances that the user has set stay. Others are those of adaptive steps, but at least what the
    precision allows. Fixed steps use that minimum, so that the error is that of the steps.

    Raises:
        ValueError: If the root finder is not a chord method: others cannot be counted.
    """
    is_chord = isinstance(solver.root_finder, (diffrax.VeryChord, optimistix.Chord))
    require(is_chord, "root_finder", "be VeryChord or Chord", type(solver.root_finder).__name__)
    rtol = atol = _MIN_ROOT_TOLERANCE_EPS * float(jnp.finfo(dtype).eps)
    if isinstance(steps, AdaptiveSteps):
        rtol, atol = jnp.maximum(steps.rtol, rtol), jnp.maximum(steps.atol, atol)
    finder = solver.root_finder
    # Diffrax marks settings that are not set by an object that is neither a number nor a function.
    rtol = finder.rtol if eqx.is_array_like(finder.rtol) else rtol
    atol = finder.atol if eqx.is_array_like(finder.atol) else atol
    norm = finder.norm if callable(finder.norm) else norm
    finder = dataclasses.replace(finder, rtol=rtol, atol=atol, norm=norm)
    if not isinstance(solver, IMEX):
        # The counter does not take part in the test of convergence.
        finder = dataclasses.replace(finder, norm=lambda state: norm(state[0]))
        finder = _IterationCounter(inner=finder, rtol=rtol, atol=atol, norm=finder.norm)
    return PerSampleImplicit(dataclasses.replace(solver, root_finder=finder), field, cost, batched)
