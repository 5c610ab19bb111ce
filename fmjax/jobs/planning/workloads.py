"""What a plan compiles: the very functions that training and sampling run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fmjax._arrays import Conditions, Params
from fmjax._checks import require
from fmjax.config import Config, Experiment, build, differentiable_forwards, make_solve, make_step
from fmjax.planning import count_flops, counts_all, flops_per_example
from fmjax.runs.sampling.batches import batch_size, make_draw
from fmjax.sharding import abstract_batch, batch_sharding, laid_out, require_batch_fits
from fmjax.training import abstract_state


class Counted(NamedTuple):
    """How much work a function is.

    Attributes:
        flops: Operations of all devices, without what is done again.
        unit: What that is of: "step", "batch", or "solver step" if their number is not known.
        repeats: How many such units the whole job has; None if that is not known.
    """

    flops: float
    unit: str
    repeats: int | None


class Work(NamedTuple):
    """A function to compile, and what it does.

    Attributes:
        mesh: The devices.
        fn: Jitted.
        args: What it is called with, as `jax.ShapeDtypeStruct`s with shardings.
        params: The network's, likewise.
        examples: Trained on or drawn, over all devices.
        count: Counts the work; it traces the function anew.
    """

    mesh: Mesh
    fn: Any
    args: tuple[Any, ...]
    params: Params
    examples: int
    count: Callable[[], Counted]


def training_step(
    config: Config, mesh: Mesh, *, event_shape: tuple[int, ...], conditions: Conditions
) -> Work:
    """One step of the training, as `fmjax train` runs it.

    Raises:
        ValueError: If the parts of the config do not fit together, the data or the devices.
    """
    experiment = build(config, event_shape, conditions)
    num = config.training.batch_size
    require_batch_fits(num, mesh, config.training.accumulation_steps)
    batch = abstract_batch(event_shape, conditions, num, mesh, paired=config.paired)
    state = abstract_state(experiment.net, experiment.optimizer, mesh)
    sharding = jax.tree.map(lambda leaf: leaf.sharding, state)
    rest = () if experiment.tuning is None else (experiment.tuning.frozen(mesh),)

    def count() -> Counted:
        flops = num * step_flops(
            config, state.params, batch, *rest, event_shape=event_shape, conditions=conditions
        )
        return Counted(flops, "step", config.training.num_steps)

    step = make_step(config, experiment, mesh, sharding)
    return Work(mesh, step, (state, batch, *rest), (state.params, *rest), num, count)


def step_flops(
    config: Config,
    params: Params,
    batch: Any,
    frozen: Any = None,
    *,
    event_shape: tuple[int, ...],
    conditions: Conditions,
) -> float:
    """Operations of one example in a step of the training, whatever computes its attention.

    Kernels say nothing of theirs: they are counted as the plain products that they stand for.
    """
    same = build(differentiable_forwards(config), event_shape, conditions)
    return flops_per_example(same.objective, params, batch, frozen)


def sampling_batch(
    config: Config, mesh: Mesh, *, event_shape: tuple[int, ...], conditions: Conditions
) -> Work:
    """One batch of samples, as `fmjax sample` draws it.

    Adaptive steps are as many as it takes, and Diffrax's fixed ones run in the same loop: what is
    counted is then the loop's body, one step.

    Raises:
        ValueError: If the parts of the config do not fit together or the data, or the grid is to
            be calibrated: that takes a trained run.
    """
    experiment = build(config, event_shape, conditions)
    sampling = config.sampling
    require(sampling.slots is None, "sampling.slots", "be left out for a plan", sampling.slots)
    num = batch_size(sampling.num_samples, sampling.batch_size, mesh)
    steps = sampling.make_steps(config.path.schedule)

    def draw(experiment: Experiment) -> Any:
        solve = make_solve(experiment, sampling)
        return make_draw(config.path, solve, steps, event_shape, sampling.seed, mesh)

    params = jax.eval_shape(experiment.init, jax.random.key(0))
    params = laid_out(params, mesh, experiment.net.tensor_axes)
    indices = jax.ShapeDtypeStruct((num,), jnp.int32, sharding=batch_sharding(mesh))
    args = (params, indices, abstract_batch(event_shape, conditions, num, mesh).cond)

    def count() -> Counted:
        plain = draw(build(differentiable_forwards(config), event_shape, conditions))
        if not counts_all(plain, *args):
            return Counted(count_flops(plain, *args), "solver step", None)
        return Counted(count_flops(plain, *args), "batch", -(-sampling.num_samples // num))

    return Work(mesh, draw(experiment), args, params, num, count)
