"""Estimate memory, speed and cost of a config on given devices, without using them."""

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
from fmjax.runs.released_weights import with_released_sizes
from fmjax.sharding import MeshConfig, bytes_held, make_mesh, num_shares
from fmjax.sharding.mesh import Device

# Share of the FLOPs of a step that is computed again: the forward pass, a third of all.
_RECOMPUTED = {"full": 1 / 3, "offload": 1 / 3}


def plan(config: Config, settings: PlanConfig, *, progress: Progress = Silent()) -> list[Plan]:
    """Plan a config and, if it does not fit the devices, smaller variants until one fits.

    Args:
        config: The experiment.
        settings: What to compile, for which devices, and how to search.
        progress: Receives a line for each plan.

    Returns:
        The plans in the order in which they were tried; only the last one may fit.

    Raises:
        ValueError: If the topology is unknown, its compiler is not installed, or the parts of the
            config are inconsistent with each other, the data or the devices.
    """
    config = with_released_sizes(config, needed=False)
    event_shape, conditions = config.data.shape()
    conditions = conditions if config.conditional else None
    devices, start = devices_of(settings.topology, settings.num_slices), time.monotonic()
    make_work = partial(_WORK[settings.work], event_shape=event_shape, conditions=conditions)
    plans: list[Plan] = []
    seen: set[str] = set()
    for candidate in _candidates(config, devices, make_work, settings):
        identity = to_json(candidate)
        if identity in seen:
            continue
        seen.add(identity)
        mesh = MeshConfig(*candidate.mesh.sizes(len(devices)))
        progress.say(f"compiling for {settings.topology}: {_describe(candidate, mesh, settings)}")
        work = make_work(candidate, make_mesh(candidate.mesh, devices))
        plans.append(_plan_one(candidate, settings, work))
        if plans[-1].fits or time.monotonic() - start > settings.patience:
            break
    return plans


_WORK: Mapping[str, Callable[..., Work]] = {
    "training": training_step,
    "sampling": sampling_batch,
}


def _plan_one(config: Config, settings: PlanConfig, work: Work) -> Plan:
    """Compile one candidate and collect its memory, traffic and FLOPs."""
    mesh, counted = work.mesh, work.count()
    flops = counted.flops / mesh.size
    device = mesh.devices.flat[0].device_kind
    chip, program = CHIPS.get(device), None
    try:
        program = compiled(work.fn, *work.args)
    except OutOfMemory as error:
        peak = error.needed
    else:
        peak = program.peak
    memory = None if chip is None else chip.memory
    training = settings.work == "training"
    remat = remat_of(config) if training else "none"
    fits = program is not None and (memory is None or program.peak <= memory)
    return Plan(
        name=config.name,
        work=settings.work,
        unit=counted.unit,
        topology=settings.name,
        device=device,
        num_devices=mesh.size,
        mesh=dict(mesh.shape),
        batch_size=work.examples,
        accumulation_steps=config.training.accumulation_steps if training else 1,
        remat=remat,
        num_parameters=num_parameters(work.params),
        arguments=bytes_held(work.args),
        temporaries=None if program is None else program.temporaries,
        peak=peak,
        memory=memory,
        fits=fits,
        flops=flops,
        traffic={} if program is None else program.traffic,
        roofline={} if chip is None or program is None else _roofline(chip, remat, flops, program),
        compile_seconds=0.0 if program is None else program.seconds,
        price=settings.price,
        kernels=() if program is None else program.kernels,
        repeats=counted.repeats,
    )


def remat_of(config: Config) -> str:
    """Return the rematerialization policy of the network, "none" if it has no such option."""
    return getattr(config.network, "remat", "none")


def _roofline(chip: Chip, remat: str, flops: float, program: Compiled) -> dict[str, float]:
    """Return the minimum number of seconds for which each resource is busy.

    Memory traffic is at least one read of the arguments, one write of the outputs, and one read and
    one write of the temporaries.

    Args:
        chip: Limits of the device.
        remat: Rematerialization policy.
        flops: FLOPs on each device, without recomputation.
        program: Memory and traffic of the compiled program.
    """
    computed = flops * (1 + _RECOMPUTED.get(remat, 0.0))
    moved = program.arguments + program.outputs + 2 * program.temporaries
    across = sum(traffic.across for traffic in program.traffic.values())
    within = sum(traffic.sent for traffic in program.traffic.values()) - across
    return {
        "compute": computed / chip.peak_flops,
        "memory": moved / chip.memory_bandwidth,
        "links": within / chip.link_bandwidth,
        "network": across / chip.network_bandwidth,
    }


def _candidates(
    config: Config,
    devices: Sequence[Device],
    make_work: Callable[..., Work],
    settings: PlanConfig,
) -> Iterator[Config]:
    """Yield the config, then variants that need less and less memory.

    First comes a layout in which weights and optimizer moments leave room for the rest. For
    training, rematerialization and more accumulation steps follow, which cost only time, and then
    the smallest batch. For sampling, the batch is halved repeatedly.
    """
    yield config
    chip = CHIPS.get(devices[0].device_kind)
    if not settings.search or chip is None:
        return
    config = _with_smaller_state(config, devices, make_work, chip)
    shares = num_shares(make_mesh(config.mesh, devices))
    if settings.work == "training":
        yield from _training_candidates(config, shares)
        return
    yield config
    sampling = config.sampling
    while sampling.batch_size >= 2 * shares:
        sampling = dataclasses.replace(sampling, batch_size=sampling.batch_size // 2)
        yield dataclasses.replace(config, sampling=sampling)


def _training_candidates(config: Config, shares: int) -> Iterator[Config]:
    """Yield variants of a training with less memory on a layout that splits a batch in `shares`."""
    yield config
    network: Any = config.network
    for remat in ("save_matmuls", "full") if hasattr(network, "remat") else ():
        if _saves_more(remat, remat_of(config)):
            config = dataclasses.replace(config, network=dataclasses.replace(network, remat=remat))
            yield config
    training = config.training
    while training.batch_size % (2 * training.accumulation_steps * shares) == 0:
        steps = 2 * training.accumulation_steps
        training = dataclasses.replace(training, accumulation_steps=steps)
        yield dataclasses.replace(config, training=training)
    # One example on each device; without accumulation no sum of gradients is kept.
    smallest = dataclasses.replace(training, batch_size=shares, accumulation_steps=1)
    yield dataclasses.replace(config, training=smallest)


def _saves_more(remat: str, current: str) -> bool:
    """Return whether a rematerialization policy needs less memory than the current one."""
    order = ("none", "save_matmuls", "full", "offload")
    return order.index(remat) > order.index(current)


def _with_smaller_state(
    config: Config, devices: Sequence[Device], make_work: Callable[..., Work], chip: Chip
) -> Config:
    """Choose the nearest layout whose arguments take at most half of a device's memory.

    If there is none, choose the layout whose arguments take the least memory.
    """
    best: tuple[float, Config] | None = None
    for mesh in layouts(len(devices), config.mesh.sizes(len(devices))):
        candidate = dataclasses.replace(config, mesh=mesh)
        try:
            held = bytes_held(make_work(candidate, make_mesh(mesh, devices)).args)
        except ValueError:  # The batch size is not divisible by the number of devices.
            continue
        if held <= 0.5 * chip.memory:
            return candidate
        if best is None or held < best[0]:
            best = held, candidate
    return config if best is None else best[1]


def layouts(num_devices: int, current: tuple[int, int, int]) -> list[MeshConfig]:
    """Return the meshes with at least as much tensor and fsdp sharding as the current one.

    They are sorted by the number of devices along tensor, then along fsdp.

    Args:
        num_devices: Number of devices of each mesh.
        current: Number of devices along data, fsdp and tensor.
    """
    _, fsdp, tensor = current
    sizes = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    meshes = [
        MeshConfig(num_devices // (f * t), f, t)
        for t in sizes
        if t >= tensor
        for f in sizes
        if f >= fsdp and num_devices % (f * t) == 0
    ]
    return sorted(meshes, key=lambda mesh: (mesh.tensor, mesh.fsdp))


def _describe(config: Config, mesh: MeshConfig, settings: PlanConfig) -> str:
    layout = f"data {mesh.data}, fsdp {mesh.fsdp}, tensor {mesh.tensor}"
    if settings.work == "sampling":
        return f"{layout}, {config.sampling.batch_size} samples"
    training = config.training
    steps = training.accumulation_steps
    accumulation = f" in {steps} accumulation steps" if steps > 1 else ""
    return f"{layout}, remat {remat_of(config)}, batch {training.batch_size}{accumulation}"
