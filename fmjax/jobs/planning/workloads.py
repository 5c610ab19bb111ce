"""The functions that a plan compiles: those that training and sampling run."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from fmjax._arrays import Batch, Params
from fmjax._checks import require
from fmjax._specs import CondSpec
from fmjax.config import Config, Experiment, build, differentiable_forwards, make_solve, make_step
from fmjax.planning import count_flops, counts_all, flops_per_example
from fmjax.runs.sampling.batches import make_batch_solver, seed_data
from fmjax.sharding import (
    abstract_batch,
    batch_sharding,
    padded_batch_size,
    require_batch_fits,
    with_shardings,
)
from fmjax.solvers import Samples
from fmjax.training import abstract_state


class Counted(NamedTuple):
    """Number of operations of a workload.

    Attributes:
        flops: FLOPs of one unit on all devices, without recomputation.
        unit: What is counted: "step", "batch", or "solver step" if the number of solver steps is
            not known in advance.
        repeats: Number of units in the entire job, or None if unknown.
    """

    flops: float
    unit: str
    repeats: int | None


class Work(NamedTuple):
    """A jitted function to compile, with its arguments and its number of operations.

    Attributes:
        mesh: The devices to compile for.
        fn: The jitted function.
        args: Arguments of `fn`, as `jax.ShapeDtypeStruct`s with shardings.
        params: Parameters of the network, as `jax.ShapeDtypeStruct`s with shardings.
        examples: Number of examples per call (training examples or samples), over all devices.
        count: Counts the operations of `fn`; this traces the function again.
    """

    mesh: Mesh
    fn: Callable[..., PyTree]
    args: tuple[PyTree, ...]
    params: Params
    examples: int
    count: Callable[[], Counted]


def training_step(
    config: Config, mesh: Mesh, *, event_shape: tuple[int, ...], conditions: CondSpec
) -> Work:
    """Return the training step that `fmjax train` runs.

    Args:
        config: The experiment.
        mesh: The devices to compile for.
        event_shape: Shape of one example.
        conditions: What the model is conditioned on.

    Raises:
        ValueError: If the parts of the config are inconsistent with each other, the data or the
            devices.
    """
    experiment = build(config, event_shape, conditions)
    num_examples = config.training.batch_size
    require_batch_fits(num_examples, mesh, config.training.accumulation_steps)
    batch = abstract_batch(event_shape, conditions, num_examples, mesh, paired=config.paired)
    state = abstract_state(experiment.model.net, experiment.optimizer, mesh)
    sharding = jax.tree.map(lambda leaf: leaf.sharding, state)
    frozen = () if experiment.tuning is None else (experiment.tuning.frozen(mesh),)

    def count() -> Counted:
        flops = num_examples * step_flops(
            config, state.params, batch, *frozen, event_shape=event_shape, conditions=conditions
        )
        return Counted(flops, "step", config.training.num_steps)

    step = make_step(config, experiment, mesh, sharding)
    return Work(mesh, step, (state, batch, *frozen), (state.params, *frozen), num_examples, count)


def step_flops(
    config: Config,
    params: Params,
    batch: Batch,
    frozen: Params | None = None,
    *,
    event_shape: tuple[int, ...],
    conditions: CondSpec,
) -> float:
    """Return the FLOPs of one example in a training step, for any attention implementation.

    Attention kernels do not state their FLOPs; they are counted as the equivalent matrix products.

    Args:
        config: The experiment.
        params: Trainable parameters, arrays or `jax.ShapeDtypeStruct`s.
        batch: Batch of any size, arrays or `jax.ShapeDtypeStruct`s.
        frozen: Parameters that are not trained, nested dicts, or None.
        event_shape: Shape of one example.
        conditions: What the model is conditioned on.
    """
    without_kernels = build(differentiable_forwards(config), event_shape, conditions)
    return flops_per_example(without_kernels.objective, params, batch, frozen)


def sampling_batch(
    config: Config, mesh: Mesh, *, event_shape: tuple[int, ...], conditions: CondSpec
) -> Work:
    """Return the function with which `fmjax sample` computes one batch of samples.

    The number of adaptive steps is not known in advance, and Diffrax runs fixed steps in the same
    loop; in both cases the FLOPs of one solver step are counted.

    Args:
        config: The experiment.
        mesh: The devices to compile for.
        event_shape: Shape of one sample.
        conditions: What the model is conditioned on.

    Raises:
        ValueError: If the parts of the config are inconsistent with each other or the data, or the
            time grid is to be calibrated, which needs a trained run.
    """
    experiment = build(config, event_shape, conditions)
    sampling = config.sampling
    slots = sampling.options.slots
    require(slots is None, "sampling.slots", "be None for a plan", slots)
    num_samples = padded_batch_size(sampling.num_samples, sampling.batch_size, mesh)
    steps = sampling.steps(experiment.model)

    def sampler_of(experiment: Experiment) -> Callable[..., Samples]:
        solve = make_solve(experiment.model, sampling)
        solver = make_batch_solver(experiment.model.process, solve, steps, event_shape, mesh)
        seed = seed_data(sampling.seed)
        return jax.jit(lambda params, indices, cond: solver(params, seed, indices, cond))

    params = jax.eval_shape(experiment.init, jax.random.key(0))
    params = with_shardings(params, mesh, experiment.model.net.tensor_axes)
    indices = jax.ShapeDtypeStruct((num_samples,), jnp.int32, sharding=batch_sharding(mesh))
    args = (params, indices, abstract_batch(event_shape, conditions, num_samples, mesh).cond)

    def count() -> Counted:
        without_kernels = build(differentiable_forwards(config), event_shape, conditions)
        sampler = sampler_of(without_kernels)
        flops = count_flops(sampler, *args)
        if not counts_all(sampler, *args):
            return Counted(flops, "solver step", None)
        return Counted(flops, "batch", -(-sampling.num_samples // num_samples))

    return Work(mesh, sampler_of(experiment), args, params, num_samples, count)
