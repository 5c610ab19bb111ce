"""A plan before a chip is paid for: will it fit, how fast can it be, what does it cost."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from fmjax._progress import Progress, Silent
from fmjax.config import Config, PlanConfig, num_parameters, to_json
from fmjax.jobs.planning.workloads import Work, sampling_batch, training_step
from fmjax.planning import CHIPS, Chip, devices_of
from fmjax.planning.compile import Compiled, OutOfMemory, compiled
from fmjax.report.plan import Plan
from fmjax.runs.released_weights import as_released
from fmjax.sharding import MeshConfig, bytes_held, make_mesh, num_shares

# What a step does again of its forward pass, whose operations are a third of all.
_AGAIN = {"full": 1 / 3, "offload": 1 / 3}


def plan(config: Config, asked: PlanConfig, *, progress: Progress = Silent()) -> list[Plan]:
    """The plan of a config as it is and, if that does not fit, those tried until one did.

    Args:
        config: The experiment.
        asked: What to compile of it, and for which devices.
        progress: Hears of each that is tried.

    Raises:
        ValueError: If the topology is not known or cannot be compiled for here, or the parts of
            the config do not fit together, the data or the devices.
    """
    config = as_released(config, needed=False)
    event_shape, conditions = config.data.shape()
    conditions = conditions if config.conditional else None
    devices, started_at = devices_of(asked.topology, asked.num_slices), time.monotonic()
    make_work = partial(_WORK[asked.work], event_shape=event_shape, conditions=conditions)
    tried: list[Plan] = []
    seen: set[str] = set()
    for each in _candidates(config, devices, make_work, asked):
        identity = to_json(each)
        if identity in seen:
            continue
        seen.add(identity)
        mesh = MeshConfig(*each.mesh.sizes(len(devices)))
        progress.say(f"compiling for {asked.topology}: {_in_words(each, mesh, asked)}")
        work = make_work(each, make_mesh(each.mesh, devices))
        tried.append(_plan_one(each, asked, work))
        if tried[-1].fits or time.monotonic() - started_at > asked.patience:
            break
    return tried


_WORK: Mapping[str, Callable[..., Work]] = {
    "training": training_step,
    "sampling": sampling_batch,
}


def _plan_one(config: Config, asked: PlanConfig, work: Work) -> Plan:
    mesh, counted = work.mesh, work.count()
    flops = counted.flops / mesh.size
    device = mesh.devices.flat[0].device_kind
    chip, found = CHIPS.get(device), None
    try:
        found = compiled(work.fn, *work.args)
    except OutOfMemory as error:
        peak = error.needed
    else:
        peak = found.peak
    memory = None if chip is None else chip.memory
    training = asked.work == "training"
    remat = remat_of(config) if training else "none"
    fits = found is not None and (memory is None or found.peak <= memory)
    return Plan(
        name=config.name,
        work=asked.work,
        unit=counted.unit,
        topology=asked.name,
        device=device,
        num_devices=mesh.size,
        mesh=dict(mesh.shape),
        batch_size=work.examples,
        accumulation_steps=config.training.accumulation_steps if training else 1,
        remat=remat,
        num_parameters=num_parameters(work.params),
        arguments=bytes_held(work.args),
        temporaries=None if found is None else found.temporaries,
        peak=peak,
        memory=memory,
        fits=fits,
        flops=flops,
        traffic={} if found is None else found.traffic,
        roofline={} if chip is None or found is None else _roofline(chip, remat, flops, found),
        compile_seconds=0.0 if found is None else found.seconds,
        price=asked.price,
        kernels=() if found is None else found.kernels,
        repeats=counted.repeats,
    )


def remat_of(config: Config) -> str:
    """The rematerialisation of its network, "none" of one that has no blocks to do it for."""
    return getattr(config.network, "remat", "none")


def _roofline(chip: Chip, remat: str, flops: float, found: Compiled) -> dict[str, float]:
    """What each resource is busy for at the least.

    Of memory, that arguments are read and outputs written, and temporaries both.
    """
    again = 1 + _AGAIN.get(remat, 0.0)
    moved = found.arguments + found.outputs + 2 * found.temporaries
    across = sum(traffic.across for traffic in found.traffic.values())
    within = sum(traffic.sent for traffic in found.traffic.values()) - across
    return {
        "compute": again * flops / chip.peak_flops,
        "memory": moved / chip.memory_bandwidth,
        "links": within / chip.link_bandwidth,
        "network": across / chip.network_bandwidth,
    }


def _candidates(
    config: Config, devices: Sequence[Any], make_work: Callable[..., Work], asked: PlanConfig
) -> Iterator[Config]:
    """The config, then ever further ones that take less memory.

    First a layout whose weights and moments leave room; then, of a training, rematerialisation,
    and smaller parts of the batch, which cost no more than time; then the smallest batch.
    """
    yield config
    chip = CHIPS.get(devices[0].device_kind)
    if not asked.search or chip is None:
        return
    config = _with_room(config, devices, make_work, chip)
    shares = num_shares(make_mesh(config.mesh, devices))
    if asked.work == "training":
        yield from _thriftier(config, shares)
        return
    yield config
    sampling = config.sampling
    while sampling.batch_size >= 2 * shares:
        sampling = dataclasses.replace(sampling, batch_size=sampling.batch_size // 2)
        yield dataclasses.replace(config, sampling=sampling)


def _thriftier(config: Config, shares: int) -> Iterator[Config]:
    """Trainings on one layout, of `shares` devices that split a batch."""
    yield config
    network: Any = config.network
    for remat in ("save_matmuls", "full") if hasattr(network, "remat") else ():
        if _less(remat_of(config), remat):
            config = dataclasses.replace(config, network=dataclasses.replace(network, remat=remat))
            yield config
    training = config.training
    while training.batch_size % (2 * training.accumulation_steps * shares) == 0:
        steps = 2 * training.accumulation_steps
        training = dataclasses.replace(training, accumulation_steps=steps)
        yield dataclasses.replace(config, training=training)
    # One example a device, and no sum of gradients to keep.
    least = dataclasses.replace(training, batch_size=shares, accumulation_steps=1)
    yield dataclasses.replace(config, training=least)


def _less(has: str, wants: str) -> bool:
    order = ("none", "save_matmuls", "full", "offload")
    return order.index(has) < order.index(wants)


def _with_room(
    config: Config, devices: Sequence[Any], make_work: Callable[..., Work], chip: Chip
) -> Config:
    """The nearest layout whose arguments take at most half of a device; the leanest if none do."""
    best: tuple[float, Config] | None = None
    for mesh in layouts(len(devices), config.mesh.sizes(len(devices))):
        candidate = dataclasses.replace(config, mesh=mesh)
        try:
            held = bytes_held(make_work(candidate, make_mesh(mesh, devices)).args)
        except ValueError:  # The batch does not divide by its devices.
            continue
        if held <= 0.5 * chip.memory:
            return candidate
        if best is None or held < best[0]:
            best = held, candidate
    return config if best is None else best[1]


def layouts(num_devices: int, asked: tuple[int, int, int]) -> list[MeshConfig]:
    """All meshes of so many devices, the nearest to the one asked for first.

    Near is: as few devices along tensor as that has or more, then along fsdp.
    """
    _, fsdp, tensor = asked
    sizes = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    found = [
        MeshConfig(num_devices // (f * t), f, t)
        for t in sizes
        if t >= tensor
        for f in sizes
        if f >= fsdp and num_devices % (f * t) == 0
    ]
    return sorted(found, key=lambda mesh: (mesh.tensor, mesh.fsdp))


def _in_words(config: Config, mesh: MeshConfig, asked: PlanConfig) -> str:
    where = f"data {mesh.data}, fsdp {mesh.fsdp}, tensor {mesh.tensor}"
    if asked.work == "sampling":
        return f"{where}, {config.sampling.batch_size} samples"
    training = config.training
    parts = f" in {training.accumulation_steps} parts" if training.accumulation_steps > 1 else ""
    return f"{where}, remat {remat_of(config)}, batch {training.batch_size}{parts}"
