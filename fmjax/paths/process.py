"""Protocols of processes, which connect a source distribution at t = 0 with the data at t = 1.

`Process` is what every training needs: samples of the source distribution, and points between a
source point and a data point. `VelocityProcess` adds what a flow needs: the network's prediction
as a velocity field, and the density of the source distribution. `AffinePath` implements both, and
has a schedule and conversions among predictions besides; SDE solvers and diffusion samplers need
these.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from fmjax._arrays import PerExample, Points, PRNGKey, Times
from fmjax._checks import require
from fmjax._inputs import describe, require_like
from fmjax._specs import Spec
from fmjax.paths.prediction import Prediction
from fmjax.paths.velocity import VelocityFn


class PathSample(NamedTuple):
    """A batch of points on the path and the targets of the training at these points.

    Attributes:
        x_t: Points on the path, `[batch, *event]`.
        target: What the network learns at these points, shaped like `x_t`. For a
            `VelocityProcess`, the conditional velocity dx_t/dt in data units per unit of time.
    """

    x_t: jax.Array
    target: jax.Array


@runtime_checkable
class Process(Protocol):
    """Stochastic process from a source distribution at t = 0 to the data at t = 1.

    Both functions must be pure, and equal with and without jit.

    Reference: Albergo et al. 2023, arXiv:2303.08797 (stochastic interpolants); Lipman et al. 2024,
    arXiv:2412.06264 (paths).
    """

    def sample_source(self, keys: jax.Array, spec: Spec) -> Points:
        """Sample the source distribution, one point per key.

        Args:
            keys: Typed keys `[batch]`. Point i must depend on key i only, so that samples do not
                depend on the batch size or the number of devices.
            spec: Shape and type of one example.

        Returns:
            Floating-point source points `[batch, *spec.shape]`.
        """
        ...

    def interpolate(self, key: PRNGKey, t: Times, x0: Points, x1: Points) -> PathSample:
        """Sample points at time t between x0 and x1, and the targets of the training.

        Called once per training step for the global batch.

        Args:
            key: Key of the random numbers of a stochastic path.
            t: Times in [0, 1], `[batch]`.
            x0: Source points `[batch, *event]`, from `sample_source` or from the data.
            x1: Data points, shaped like `x0`.

        Returns:
            The points and targets, both shaped like `x1`.
        """
        ...


@runtime_checkable
class VelocityProcess(Process, Protocol):
    """Process whose marginal distributions are those of a flow, so that an ODE samples the data.

    The target of `interpolate` is a conditional velocity: its mean given `x_t` is the velocity of
    the flow, with `dp_t/dt = -div(p_t velocity)`.
    """

    def velocity_fn(
        self, predict_fn: Callable[..., Points], prediction: Prediction = Prediction.VELOCITY
    ) -> VelocityFn:
        """Return the velocity field of a network.

        Args:
            predict_fn: Network `(t, x, cond) -> prediction`, shaped like x.
            prediction: Quantity that `predict_fn` returns. A process whose networks always predict
                the velocity returns `predict_fn`.
        """
        ...

    def source_log_density(self, x0: Points) -> PerExample:
        """Compute the log-density of the source distribution in nats, `[batch]`.

        Raises:
            ValueError: If the density is unknown. Only log-densities of data need it.
        """
        ...


def require_velocity_process(process: object, name: str = "path") -> VelocityProcess:
    """Return `process`; raise unless it has the methods of a `VelocityProcess`."""
    for method in ("sample_source", "interpolate", "velocity_fn", "source_log_density"):
        has_method = callable(getattr(process, method, None)) and not isinstance(process, type)
        rule = f"have a method {method}, like every VelocityProcess"
        require(has_method, name, rule, describe(process))
    assert isinstance(process, VelocityProcess)
    return process


def source_keys(key: PRNGKey, indices: jax.Array) -> jax.Array:
    """Return the key of each sample, `fold_in(key, index)`, which depends on no other sample."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


def sample_source(process: Process, keys: jax.Array, spec: Spec) -> Points:
    """Sample the source distribution of a process, and check the shape of the result.

    Raises:
        ValueError: If the process does not return floating-point points `[batch, *spec.shape]`.
    """
    x0 = process.sample_source(keys, spec)
    expected = jax.ShapeDtypeStruct((*keys.shape, *spec.shape), jnp.float32)
    require_like(f"{type(process).__name__}.sample_source", x0, expected)
    return x0


def interpolate(process: Process, key: PRNGKey, t: Times, x0: Points, x1: Points) -> PathSample:
    """Sample the path of a process, and check the shapes of the result.

    Raises:
        ValueError: If the process does not return points and targets shaped like `x1`.
    """
    name = f"{type(process).__name__}.interpolate"
    sample = process.interpolate(key, t, x0, x1)
    is_pair = isinstance(sample, tuple) and len(sample) == 2
    require(is_pair, name, "return a PathSample(x_t, target)", describe(sample))
    for value in sample:
        require_like(name, value, x1)
    return PathSample(*sample)
