"""Diffrax's implicit solvers, one small root to find per sample, every evaluation counted.

Left alone, Diffrax would find one root for the whole batch, with a dense Jacobian of
(batch * size)^2 numbers that is zero outside its blocks, and would not say how many times the
root finder called the field. So the step of one sample is mapped over the batch, and, where the
field is solved for implicitly, that sample carries one number more, a meter. In its place the
root finder leaves the number of its iterations at each stage, which are read when the step is
done.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix

from fmjax._checks import require
from fmjax.solvers.steps import AdaptiveSteps

IMEX = (diffrax.KenCarp3, diffrax.KenCarp4, diffrax.KenCarp5, diffrax.Sil3)
# A root finder needs digits to see its own progress: this many times the spacing of floats.
_ROOT_TOLERANCE = 1e4
# An update of this share of the tolerance is near enough.
_NEAR = 0.1


class _Metered(optimistix.AbstractRootFinder):
    """`inner`, a chord method, on unknowns (points, meter)."""

    inner: Any
    rtol: Any
    atol: Any
    norm: Any

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """As inner."""
        return self.inner.init(*args, **kwargs)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """As inner."""
        return self.inner.step(*args, **kwargs)

    def terminate(self, fn: Any, y: Any, args: Any, options: Any, state: Any, tags: Any) -> Any:
        """As inner, but for two of its verdicts.

        Diffrax 0.7.2 calls it divergence, which ends the search, when the second iteration is
        not yet near enough: here the search goes on. And an update that is small and no longer
        shrinks is rounding, as when the first guess is as good as floats allow.
        """
        done, result = self.inner.terminate(fn, y, args, options, state, tags)
        failed = done & ~(state.diffsize < _NEAR)
        return done, optimistix.RESULTS.where(failed, result, optimistix.RESULTS.successful)

    def postprocess(
        self, fn: Any, y: Any, aux: Any, args: Any, options: Any, state: Any, tags: Any, result: Any
    ) -> Any:
        """Leave the number of iterations, each of them one call, on the meter."""
        y, aux, stats = self.inner.postprocess(fn, y, aux, args, options, state, tags, result)
        points, evaluations = y
        return (points, state.step.astype(evaluations.dtype)), aux, stats


class PerSampleImplicit(diffrax.AbstractAdaptiveSolver):
    """An implicit solver's step, for each sample by itself, all over the same interval.

    Attributes:
        inner: Steps one sample.
        field: `field(t, x, cond)` of one sample.
        cost: Network evaluations of one call at time t.
        batched: Points have a leading batch axis.
    """

    inner: Any
    field: Callable[..., jax.Array] = eqx.field(static=True)
    cost: Callable[[jax.Array], jax.Array] = eqx.field(static=True)
    batched: bool = eqx.field(static=True)

    term_structure: ClassVar = diffrax.AbstractTerm

    @property
    def interpolation_cls(self) -> Any:  # pyright: ignore
        """As inner's."""
        return self.inner.interpolation_cls

    @property
    def counts_evaluations(self) -> bool:
        """Whether the field is the implicit part, so that only the root finder knows the cost."""
        return not isinstance(self.inner, IMEX)

    @property
    def _terms(self) -> Any:
        if not self.counts_evaluations:
            # All of the field is explicit.
            nothing = diffrax.ODETerm(lambda t, x, cond: jnp.zeros_like(x))
            return diffrax.MultiTerm(diffrax.ODETerm(self.field), nothing)

        def with_meter(t: Any, at: Any, cond: Any) -> Any:
            x, evaluations = at
            return self.field(t, x, cond), jnp.zeros_like(evaluations)

        return diffrax.ODETerm(with_meter)

    def order(self, terms: Any) -> Any:
        """As inner's."""
        del terms
        return self.inner.order(self._terms)

    def error_order(self, terms: Any) -> Any:
        """As inner's."""
        del terms
        return self.inner.error_order(self._terms)

    def _state(self, x: jax.Array) -> Any:
        return (x, jnp.zeros((), x.dtype)) if self.counts_evaluations else x

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> Any:
        """Inner's memory for each sample."""
        del terms

        def one(x: jax.Array, cond: Any) -> Any:
            return self.inner.init(self._terms, t0, t1, self._state(x), cond)

        return jax.vmap(one)(y0, args) if self.batched else one(y0, args)

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> Any:
        """Step each sample; where its root was not found, error and x1 are infinite.

        In place of the error stands (error, evaluations), as `NFECountingController` expects.
        """
        del terms, made_jump

        def one(x: jax.Array, cond: Any, memory: Any) -> Any:
            y1, error, dense, new_memory, result = self.inner.step(
                self._terms, t0, t1, self._state(x), cond, memory, False
            )
            k = dense.get("k")
            spent = jnp.zeros((), jnp.int32)
            if self.counts_evaluations:
                spent = self._bill(t0, t1, x.size, y1[1], None if k is None else k[1], memory)
                y1, error, k = y1[0], error[0], None if k is None else k[0]
            y1 = jnp.where(result == diffrax.RESULTS.successful, y1, jnp.inf)
            return y1, (error, spent), new_memory, k

        if self.batched:
            one = jax.vmap(one, out_axes=(0, 0, 0, 1))
        y1, error, memory, k = one(y0, args, solver_state)
        dense = {"y0": y0, "y1": y1} | ({} if k is None else {"k": k})
        return y1, error, dense, memory, diffrax.RESULTS.successful

    def _bill(self, t0: Any, t1: Any, size: int, total: Any, stages: Any, memory: Any) -> Any:
        """Evaluations of one step: every iteration, and the Jacobians, an evaluation a column.

        A Jacobian is one call and a derivative along every axis, the meter's among them.
        """
        jacobian = size + 2
        if stages is None:  # ImplicitEuler: a guess at t0, one Jacobian and one root at t1
            return self.cost(t0) + (jacobian + _rounded(total)) * self.cost(t1)
        # ESDIRK: Diffrax sets out with a Jacobian at t0 and takes the one it works with at the
        # second stage. The first stage is known from the last step, but for the first step.
        h = t1 - t0
        costs = [self.cost(t1 if c == 1.0 else t0 + float(c) * h) for c in self.inner.tableau.c]
        costs = jnp.stack([self.cost(t0), *costs])
        first_step, _ = memory
        iterations = _rounded(stages / h)
        iterations = iterations.at[0].multiply(first_step)
        return jacobian * (costs[0] + costs[1]) + jnp.sum(iterations * costs)

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        """The field, which Diffrax may ask for."""
        return terms.vf(t0, y0, args)


def _rounded(number: jax.Array) -> jax.Array:
    return jnp.round(number).astype(jnp.int32)


def each_sample(
    solver: Any, field: Any, cost: Any, steps: Any, norm: Any, dtype: Any, *, batched: bool
) -> PerSampleImplicit:
    """`solver` as an `PerSampleImplicit`, its root finder told how exact to be unless it was.

    As exact as adaptive steps are, but within what the precision can tell; under fixed steps
    that limit itself, so that the error is that of the steps.

    Raises:
        ValueError: If the root finder is not a chord method, the only ones that are counted.
    """
    is_chord = isinstance(solver.root_finder, (diffrax.VeryChord, optimistix.Chord))
    require(is_chord, "root_finder", "be VeryChord or Chord", type(solver.root_finder).__name__)
    rtol = atol = _ROOT_TOLERANCE * float(jnp.finfo(dtype).eps)
    if isinstance(steps, AdaptiveSteps):
        rtol, atol = jnp.maximum(steps.rtol, rtol), jnp.maximum(steps.atol, atol)
    finder = solver.root_finder
    # Diffrax marks what is to be told by an object that is neither number nor function.
    rtol = finder.rtol if eqx.is_array_like(finder.rtol) else rtol
    atol = finder.atol if eqx.is_array_like(finder.atol) else atol
    norm = finder.norm if callable(finder.norm) else norm
    finder = dataclasses.replace(finder, rtol=rtol, atol=atol, norm=norm)
    if not isinstance(solver, IMEX):
        # The meter is no part of the answer's exactness.
        finder = dataclasses.replace(finder, norm=lambda at: norm(at[0]))
        finder = _Metered(finder, rtol, atol, finder.norm)
    return PerSampleImplicit(dataclasses.replace(solver, root_finder=finder), field, cost, batched)
