"""The posterior of a simulator's parameters that a run has learned."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from fmjax._arrays import Cond, Params, Points, PRNGKey
from fmjax._checks import require, require_count, require_positive
from fmjax._inputs import describe, require_points
from fmjax._progress import COMPILING, Progress, Silent
from fmjax._specs import CondSpec, Spec
from fmjax.config import build, differentiable_forwards
from fmjax.runs.folder import Run
from fmjax.runs.sampling.batches import require_samples_fit, sample_source_points
from fmjax.sharding import map_batched, on_mesh
from fmjax.solvers import AdaptiveSteps, ExactDivergence, log_density, sample

MIN_BATCH = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Posterior:
    """Posterior p(theta | observation) of the parameters of a simulator, learned by a run.

    The run is trained on simulated pairs: its data are the parameters theta, drawn from the prior,
    and its condition is the observation. Samples and densities are those of the flow without
    guidance. The programs are compiled once per object and number of samples, rounded up to a
    power of 2.

    Attributes:
        run: A trained run whose condition is an array of floating-point numbers or a dict of them.
        tolerance: Relative and absolute tolerance of the adaptive solver (Tsit5), in units of theta
            or, for a run with `standardize`, in its standard deviations.
        batch_size: Largest number of points solved at a time.

    Raises:
        ValueError: If the run has no such condition, its source distribution is a dataset, or a
            setting is out of range.

    Reference: Dax et al. 2023, arXiv:2305.17161 (flow matching posterior estimation).
    """

    run: Run
    tolerance: float = 1e-5
    batch_size: int = 4_096

    def __post_init__(self) -> None:
        run = self.run
        require(isinstance(run, Run), "run", "be an opened run (fmjax.open_run)", describe(run))
        rule = "be conditioned on floating-point numbers, the observation"
        require(_is_observation(run.conditions), "run", rule, run.conditions)
        rule = "have noise as its source distribution"
        require(run.config.source is None, "run", rule, "a dataset")
        require_positive("tolerance", self.tolerance)
        require_count("batch_size", self.batch_size, 1)

    def sample(
        self, num: int, observation: PyTree, *, seed: int = 0, progress: Progress = Silent()
    ) -> np.ndarray:
        """Sample parameters from the posterior of one or several observations.

        Args:
            num: Number of samples for each observation.
            observation: One observation, `[k]` for a vector, or several, `[n, k]`, in the units of
                the simulator; for a run conditioned on a dict, a dict of arrays.
            seed: Seed of the noise. Sample i of a call depends on the seed and on i only, up to the
                tolerance.
            progress: Receives progress reports.

        Returns:
            Samples in the units of theta, float32 `[num, *theta]` for one observation and
            `[n, num, *theta]` for several; NaN where a solve failed.

        Raises:
            ValueError: If the observation does not have the shape of the run's condition.
        """
        require_count("num", num, 1)
        require_count("seed", seed, 0)
        cond, batch = self._conditions(observation)
        total, event = num * (batch or 1), self.run.event_shape
        require_samples_fit("num", total, event)
        program = partial(self._sample_program, self.run.params, jax.random.key(seed))
        theta = self._map(
            program, lambda i: (i, _rows(cond, i // num)), total, "sampling", progress
        )
        return theta.reshape(*(() if batch is None else (batch,)), num, *event)

    def log_prob(
        self, theta: np.ndarray | jax.Array, observation: PyTree, *, progress: Progress = Silent()
    ) -> np.ndarray:
        """Compute the log-density of parameters under the posterior, with the exact divergence.

        One evaluation costs a derivative of the network for each number of theta.

        Args:
            theta: Parameters in the units of the simulator: `[num, *theta]` for one observation,
                `[n, num, *theta]` for `n` observations, as `sample` returns them.
            observation: One observation, `[k]` for a vector, or several, `[n, k]`.
            progress: Receives progress reports.

        Returns:
            Log-densities in nats per unit of theta, float64 `[num]` or `[n, num]`; NaN where a
            solve failed.

        Raises:
            ValueError: If the shapes of `theta` and `observation` do not fit the run.

        Reference: Chen et al. 2018, arXiv:1806.07366, equation 8.
        """
        require_points("theta", theta)
        cond, batch = self._conditions(observation)
        event = self.run.event_shape
        first = 0 if batch is None else 1  # Axis of the parameters of one observation.
        rows = "[num" if batch is None else f"[{batch}, num"
        rule = f"have shape {rows}, {', '.join(map(str, event))}]"
        fits = theta.ndim == first + 1 + len(event) and theta.shape[first + 1 :] == event
        fits = fits and theta.shape[:first] == (batch,) * first
        require(fits, "theta", rule, theta.shape)
        num = theta.shape[first]
        points = np.asarray(theta, np.float32).reshape(-1, *event)
        program = partial(self._log_prob_program, self.run.params)
        nats = self._map(
            program,
            lambda i: (points[i], _rows(cond, i // num)),
            len(points),
            "log-density",
            progress,
        )
        log_volume = self.run.standardization.log_volume(event)
        return (nats.astype(np.float64) - log_volume).reshape(theta.shape[: first + 1])

    def _conditions(self, observation: PyTree) -> tuple[Cond, int | None]:
        """Return observations as the network takes them, `[n, ...]`, and n; None for a single one.

        Raises:
            ValueError: If a leaf does not have the shape of the run's condition, or is not finite.
        """
        cond, sizes = _as_rows(observation, self.run.conditions, "observation")
        rule = "be one observation, or arrays with the same number of observations"
        require(len(set(sizes)) == 1, "observation", rule, sizes)
        return self.run.standardization.conds(cond), sizes[0]

    def _map(
        self,
        program: Callable[..., jax.Array],
        inputs: Callable[[np.ndarray], tuple[PyTree, ...]],
        num: int,
        title: str,
        progress: Progress,
    ) -> np.ndarray:
        """Apply a program to `num` points in batches whose size is a power of 2 or `batch_size`."""
        size = min(self.batch_size, max(MIN_BATCH, 1 << (num - 1).bit_length()))
        with progress.task(title, num) as advance:
            advance(0, COMPILING)
            return map_batched(
                program,
                inputs,
                num,
                batch_size=size,
                mesh=self.run.mesh,
                constant_size=True,
                on_batch=advance,
            )

    @property
    def _steps(self) -> AdaptiveSteps:
        return AdaptiveSteps(self.tolerance, self.tolerance)

    @functools.cached_property
    def _sample_program(self) -> Callable[..., jax.Array]:
        """The compiled function `(params, key, indices, cond) -> theta`."""
        run, steps, standardization = self.run, self._steps, self.run.standardization

        def solve(params: Params, key: PRNGKey, indices: jax.Array, cond: Cond) -> jax.Array:
            x0 = sample_source_points(run.model.process, key, indices, run.event_shape)
            solved = sample(run.model.velocity_fn(params), x0, cond, steps=steps)
            theta = standardization.restore_points(solved.x1)
            succeeded = solved.succeeded.reshape(-1, *(1,) * (theta.ndim - 1))
            return jnp.where(succeeded, theta, jnp.nan)

        return jax.jit(on_mesh(run.mesh, solve))

    @functools.cached_property
    def _log_prob_program(self) -> Callable[..., jax.Array]:
        """The compiled function `(params, theta, cond) -> nats` per unit of standardized theta."""
        run, steps, standardization = self.run, self._steps, self.run.standardization
        # The divergence uses forward-mode differentiation, which some kernels do not support.
        experiment = build(differentiable_forwards(run.config), run.event_shape, run.conditions)

        def solve(params: Params, theta: Points, cond: Cond) -> jax.Array:
            solved = log_density(
                experiment.model.velocity_fn(params),
                standardization.points(theta),
                cond,
                divergence=ExactDivergence(),
                steps=steps,
                source_log_density=run.model.velocity_process.source_log_density,
            )
            return jnp.where(solved.succeeded, solved.log_density, jnp.nan)

        return jax.jit(on_mesh(run.mesh, solve))


def _is_observation(conditions: CondSpec) -> bool:
    """Return whether a condition consists of floating-point arrays only."""
    if isinstance(conditions, Mapping):
        return all(_is_observation(spec) for spec in conditions.values())
    return isinstance(conditions, Spec) and conditions.dtype == "float32"


def _rows(cond: Cond, indices: np.ndarray) -> Cond:
    """Return the observations at `indices`."""
    return jax.tree.map(itemgetter(indices), cond)


def _as_rows(
    observation: PyTree, conditions: CondSpec, name: str
) -> tuple[PyTree, list[int | None]]:
    """Convert observations to float32 arrays `[n, *shape]`.

    Returns:
        The arrays, and the number of observations of each; None for one without this axis.
    """
    if isinstance(conditions, Mapping):
        rule = f"be a dict of {', '.join(conditions)}"
        has_names = isinstance(observation, Mapping) and set(observation) == set(conditions)
        require(has_names, name, rule, describe(observation))
        parts = {
            key: _as_rows(observation[key], spec, f"{name}[{key!r}]")
            for key, spec in conditions.items()
        }
        cond = {key: part for key, (part, _) in parts.items()}
        return cond, [size for _, sizes in parts.values() for size in sizes]
    assert isinstance(conditions, Spec)
    array = _as_floats(observation, name)
    shape = conditions.shape
    axes = ", ".join(map(str, shape))
    rule = f"have shape [{axes}] or [n, {axes}]" if shape else "be a number or have shape [n]"
    is_single = array.shape == shape
    require(is_single or (array.shape[1:] == shape and len(array) > 0), name, rule, array.shape)
    require(bool(np.isfinite(array).all()), name, "hold finite numbers", "inf or nan")
    return (array[None], [None]) if is_single else (array, [len(array)])


def _as_floats(value: Any, name: str) -> np.ndarray:
    """Convert numbers to float32.

    Raises:
        ValueError: If the value is not an array of real numbers.
    """
    try:
        array = np.asarray(value)
    except ValueError:  # Rows of different lengths.
        array = np.asarray(None)
    require(array.dtype.kind in "fiu", name, "be an array of numbers", describe(value))
    return array.astype(np.float32)
