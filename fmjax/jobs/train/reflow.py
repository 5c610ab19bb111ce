"""The next flow: trained on the pairs that the last one makes, from its weights."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from fmjax._arrays import TokenShape
from fmjax._checks import require
from fmjax._progress import Progress
from fmjax.config import ODE_SOLVERS, Config, ReflowConfig, SamplingConfig
from fmjax.config.losses import LossConfig
from fmjax.data import Dataset, Pairs
from fmjax.jobs.train.pairs import make_pairs
from fmjax.paths import AffinePath, Independent, Linear, Prediction, UniformSteps, UShaped
from fmjax.runs.folder import Run, open_run
from fmjax.sharding import all_or_none
from fmjax.training import Checkpoints, TrainState, restore_ema


def reflow_config(teacher: Config, run: Path, *, distill: bool = False) -> Config:
    """What `fmjax reflow` trains by default: the teacher's network and training, on its pairs.

    Whatever the teacher was, the next flow predicts the velocity of straight lines, at U-shaped
    times, as those are wrong at their ends (arXiv:2405.20320, section 4.1). To distil is to train
    at t = 0 alone, where one Euler step of the pair starts.

    Args:
        teacher: The flow that makes the pairs.
        run: Its folder.
        distill: Train the one step only.
    """
    sampling, loss = teacher.sampling, teacher.loss
    flow = isinstance(loss, LossConfig)
    straight = flow and teacher.path.schedule == Linear() and loss.prediction == Prediction.VELOCITY
    # Guidance is in the pairs: what learns them needs no other.
    guided = sampling.guidance != 1.0
    students = dataclasses.replace(sampling, guidance=1.0, clip=None)
    if distill:
        students = dataclasses.replace(
            students, solver="euler", num_steps=1, grid="uniform", slots=None
        )
    elif sampling.solver not in ODE_SOLVERS:
        students = dataclasses.replace(students, solver="tsit5", num_steps=None)
    solvers = tuple(name for name in teacher.compare.fixed_solvers if name in ODE_SOLVERS)
    return dataclasses.replace(
        teacher,
        name=_next_name(teacher.name, distill),
        reflow=ReflowConfig(str(run), sampling=_without_count(sampling), warm_start=straight),
        path=AffinePath(),
        coupling=Independent(),
        loss=LossConfig(
            density=UniformSteps(1) if distill else UShaped(),
            huber=loss.huber if flow else None,
            stratified=flow and loss.stratified and not distill,
            label_drop=0.0 if guided else loss.label_drop,
        ),
        # A pair that is mirrored is one only of a flow that treats mirror images alike.
        training=dataclasses.replace(teacher.training, flip=False),
        sampling=students,
        compare=dataclasses.replace(teacher.compare, guidance=1.0, fixed_solvers=solvers),
    )


def _without_count(sampling: SamplingConfig) -> SamplingConfig:
    return dataclasses.replace(sampling, num_samples=SamplingConfig().num_samples)


def _next_name(name: str, distill: bool) -> str:
    """`digits`, `digits_2rf`, `digits_3rf`, ..; `digits_2rf_distilled`."""
    if distill:
        return f"{name}_distilled"
    stem, _, count = name.rpartition("_")
    if stem and count.endswith("rf") and count[:-2].isdigit():
        return f"{stem}_{int(count[:-2]) + 1}rf"
    return f"{name}_2rf"


def teacher_of(config: Config) -> Run | None:
    """The run that makes the pairs of a training, on this process's devices; None without pairs."""
    if config.reflow is None:
        return None
    with all_or_none("opening the teacher"):
        return open_run(config.reflow.teacher, alone=True)


def pairs_for(config: Config, teacher: Run, dataset: Dataset, progress: Progress) -> Pairs:
    """The pairs of a training, made where they are missing.

    Raises:
        ValueError: If the teacher is of other data or, to start from, of another network, or the
            pairs were made otherwise.
    """
    assert config.reflow is not None
    with all_or_none("comparing with the teacher"):
        about = f"run {config.reflow.teacher}"
        wanted = (dataset.event_shape, dataset.conditions)
        found = (teacher.event_shape, teacher.conditions)
        rule = "be of a model of classes or of none to make pairs"
        require(not isinstance(teacher.conditions, TokenShape), about, rule, "one of captions")
        require(found == wanted, about, f"be of points and classes {wanted}", found)
        if config.reflow.warm_start:
            velocity = teacher.experiment.flow_map is None and isinstance(config.loss, LossConfig)
            alike = velocity and config.network == teacher.config.network
            rule = "be off (--reflow.no-warm-start) for another network than the teacher's"
            require(alike, "reflow.warm_start", rule, "on")
    return make_pairs(teacher, config.reflow, progress=progress)


def warm_start(teacher: Run, config: Config, state: TrainState, checkpoints: Path) -> TrainState:
    """The state with the teacher's averaged weights, if the training is to start from them.

    Args:
        teacher: The run.
        config: Of the training.
        state: A fresh one.
        checkpoints: Of the training; where there are some, it goes on from them.

    Raises:
        ValueError: If the network is another.
    """
    assert config.reflow is not None
    if not config.reflow.warm_start:
        return state
    with all_or_none("starting from the teacher"):
        if checkpoints.is_dir():
            with Checkpoints(checkpoints) as own:
                if own.latest_step() is not None:
                    return state
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            state.params,
        )
        params, _ = restore_ema(teacher.folder.checkpoints, like)
    # Copies: no buffer may be donated twice.
    return state._replace(params=params, ema_params=jax.tree.map(jnp.copy, params))
