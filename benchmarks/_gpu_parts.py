"""The measurements of `gpu.py`, each case in a process of its own.

    python benchmarks/_gpu_parts.py dit none --seconds 110 [--tiny]

It writes one JSON object a line to standard output as soon as it has a result. Everything that is
measured is what `fmjax train`, `fmjax generate` and `fmjax sample` run: the same configs, the same
jitted functions, compiled once and called with arrays that were made on the device.
"""

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from _measure import report, spread, take_turns

import fmjax
from fmjax._arrays import TextShape
from fmjax._memory import is_out_of_memory
from fmjax.config import Config, SamplingConfig, build, num_parameters
from fmjax.data import ArrayData, EncodedData
from fmjax.jobs.planning.workloads import Work, sampling_batch, training_step
from fmjax.networks import DIT_XL, FluxConfig, LoRAConfig
from fmjax.planning import CHIPS
from fmjax.planning.compile import Compiled, OutOfMemory, executable_of
from fmjax.runs.load_config import load_config
from fmjax.sharding import make_mesh
from fmjax.training import state_from

CONFIGS = Path(__file__).parents[1] / "configs"
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "diffrax",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
)
STARTED = time.monotonic()
SPARE = 10.0  # Seconds before the limit in which no further batch size is begun.
STD = 0.02  # Of random weights.


def changed(config: Config, **changes: Any) -> Config:
    """The config with some fields of its parts changed: `network={"remat": "full"}`."""
    parts = {
        name: dataclasses.replace(getattr(config, name), **fields)
        for name, fields in changes.items()
    }
    return dataclasses.replace(config, **parts)


def dit_config(tiny: bool, remat: str, batch_size: int) -> Config:
    """Training of DiT-XL/2 on latents of 256x256 images."""
    config = load_config(CONFIGS / "imagenet256_sit.py")
    sizes: dict[str, Any] = {
        name: getattr(DIT_XL, name) for name in ("width", "num_layers", "num_heads")
    }
    if tiny:
        config, sizes = tiny_latents(config), dict(width=32, num_layers=2, num_heads=2)
    return changed(config, network=sizes | {"remat": remat}, training={"batch_size": batch_size})


def adaptive_config(tiny: bool, tolerance: float, guidance: float) -> Config:
    """Sampling of DiT-B/2 with Tsit5."""
    config = load_config(CONFIGS / "imagenet256_sit.py")
    num = 64
    if tiny:
        config = changed(tiny_latents(config), network=dict(width=32, num_layers=2, num_heads=2))
        num = 4
    sampling = SamplingConfig(
        num_samples=num,
        batch_size=num,
        solver="tsit5",
        rtol=tolerance,
        atol=tolerance,
        guidance=guidance,
    )
    return dataclasses.replace(config, sampling=sampling)


def flux_config(tiny: bool) -> Config:
    """28 Euler steps of FLUX.1-dev's sizes, one picture of 1024x1024."""
    config = load_config(CONFIGS / "flux_dev.py")
    config = changed(
        config, network={"remat": "none"}, sampling={"num_samples": 1, "batch_size": 1}
    )
    return tiny_flux(config) if tiny else config


def lora_config(tiny: bool, remat: str, batch_size: int) -> Config:
    """Training of LoRA adapters of rank 16 on FLUX.1-dev's sizes at 1024x1024."""
    config = load_config(CONFIGS / "finetune_flux.py")
    config = changed(
        config,
        network={"remat": remat},
        training={"batch_size": batch_size},
        pretrained={"lora": LoRAConfig(rank=16, alpha=16.0)},
    )
    return tiny_flux(config) if tiny else config


def tiny_latents(config: Config) -> Config:
    """Replace the data of a config by latents of 8x8x4, for --tiny."""
    data = ArrayData("latents", num_classes=10, event_shape=(8, 8, 4))
    return dataclasses.replace(config, data=data)


def tiny_flux(config: Config) -> Config:
    """Replace the network and the data of a config by a small FLUX, for --tiny."""
    assert isinstance(config.network, FluxConfig)
    network = dataclasses.replace(
        config.network,
        num_heads=2,
        head_width=16,
        num_double=1,
        num_single=2,
        rotary_axes=(4, 6, 6),
    )
    data = EncodedData("latents", event_shape=(8, 8, 16), text=TextShape(8, 32, 24))
    return dataclasses.replace(config, network=network, data=data)


def shape_of(config: Config) -> dict[str, Any]:
    """The shape of an example, and what the model is conditioned on."""
    event_shape, conditions = config.data.shape()
    return {"event_shape": event_shape, "conditions": conditions}


def training_work(config: Config, mesh: Any) -> Work:
    """The step of a training."""
    return training_step(config, mesh, **shape_of(config))


def sampling_work(config: Config, mesh: Any, dtype: Any = None) -> Work:
    """The solve of a batch, with weights of a type; None keeps float32."""
    work = sampling_batch(config, mesh, **shape_of(config))
    if dtype is None:
        return work
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding), work.params
    )
    return work._replace(args=(params, *work.args[1:]), params=params)


def weights_maker(like: Any) -> Callable[[Any], Any]:
    """Weights of a key, made on the device in the types and the layout of `like`.

    They are normal with standard deviation `STD`, around 1 where they scale norms. None is zero, as
    many of a fresh network are: arithmetic on zeros takes less power and can be faster than on
    real weights. Stacked layers are drawn one after the other, each cast at once: the device need
    not hold all of them in float32.

    Args:
        like: `jax.ShapeDtypeStruct`s with shardings, nested dicts by name.
    """
    named, tree = jax.tree_util.tree_flatten_with_path(like)

    def one(name: str, leaf: Any, key: Any) -> Any:
        shape = leaf.shape[1:] if len(leaf.shape) == 3 else leaf.shape
        middle = 1.0 if name.endswith("scale") else 0.0

        def draw(key: Any) -> Any:
            return (middle + STD * jax.random.normal(key, shape)).astype(leaf.dtype)

        if shape == leaf.shape:
            return draw(key)
        return jax.lax.map(draw, jax.random.split(key, leaf.shape[0]))

    def make(key: Any) -> Any:
        keys = jax.random.split(key, len(named))
        leaves = [one(path[-1].key, leaf, k) for (path, leaf), k in zip(named, keys, strict=True)]
        return jax.tree.unflatten(tree, leaves)

    return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, like))


def inputs_maker(like: Any, num_classes: int) -> Callable[[Any], Any]:
    """Inputs of a key, made on the device: normal numbers, and classes where `like` has integers.

    Args:
        like: `jax.ShapeDtypeStruct`s with shardings.
        num_classes: How many there are.
    """
    leaves, tree = jax.tree.flatten(like)

    def one(leaf: Any, key: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jax.random.randint(key, leaf.shape, 0, num_classes, leaf.dtype)
        return jax.random.normal(key, leaf.shape, leaf.dtype)

    def make(key: Any) -> Any:
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(tree, list(map(one, leaves, keys)))

    return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, like))


class Case(NamedTuple):
    """What a process measures.

    Attributes:
        part: Name of the part: dit, flux, lora, adaptive or about.
        variant: Rematerialisation policy of a training; empty for the other parts.
        device: The GPU, or a CPU for --tiny.
        tiny: Whether sizes are small.
        seconds: Time limit of the process.
    """

    part: str
    variant: str
    device: Any
    tiny: bool
    seconds: float

    @property
    def mesh(self) -> Any:
        """The one device."""
        return make_mesh(devices=[self.device])

    @property
    def rounds(self) -> int:
        """Measured calls, after two that are not."""
        return 2 if self.tiny else 5

    def write(self, line: str, **values: Any) -> None:
        """Write a line of results."""
        elapsed = time.monotonic() - STARTED
        report(
            {"line": line, "part": self.part, "case": self.variant, **values, "elapsed": elapsed}
        )

    def leave_out(self, reason: str, **values: Any) -> None:
        """Say what is not measured, and why."""
        self.write("left_out", **values, reason=reason)

    def has_time_for(self, seconds: float) -> bool:
        """Whether work of about that long ends before the limit."""
        return time.monotonic() - STARTED + seconds < self.seconds - SPARE

    def compile(self, work: Work, **values: Any) -> tuple[Any, Any]:
        """The program of some work and its figures; None twice if it does not fit the device."""
        try:
            program, found = executable_of(work.fn, *work.args)
        except OutOfMemory as error:
            self.leave_out("out of memory in the compiler", bytes_needed=error.needed, **values)
            return None, None
        limit = (self.device.memory_stats() or {}).get("bytes_limit")
        if limit is not None and found.peak > limit:
            self.leave_out(
                "does not fit the memory",
                bytes_needed=found.peak,
                bytes_limit=limit,
                compile_seconds=found.seconds,
                **values,
            )
            return None, None
        return program, found

    def facts(self, work: Work, found: Compiled) -> dict[str, Any]:
        """What every result says of its network and program."""
        stats = self.device.memory_stats() or {}
        return {
            "num_parameters": num_parameters(work.params),
            "compile_seconds": found.seconds,
            "memory": {
                "arguments": found.arguments,
                "temporaries": found.temporaries,
                "peak": found.peak,
                "measured_peak": stats.get("peak_bytes_in_use"),
            },
            "kernels": list(found.kernels),
        }

    def speed(self, flops: float, rate: float) -> dict[str, Any]:
        """So many images a second in operations, and as a share of what the chip can do at most.

        Args:
            flops: Operations of one image, without what rematerialisation does again.
            rate: Images per second.
        """
        chip = CHIPS.get(self.device.device_kind)
        share = None if chip is None else flops * rate / chip.peak_flops
        return {"flops_per_image": flops, "teraflops": flops * rate / 1e12, "share_of_peak": share}


def measured(take: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Median and quartiles of a call's seconds, after two calls that are not counted."""
    seconds = take_turns({"call": take}, rounds, warmup=2)["call"]
    return {
        "seconds": statistics.median(seconds),
        "seconds_quartiles": spread(seconds),
        "rounds": rounds,
    }


@dataclasses.dataclass
class Training:
    """A training that is under way.

    Attributes:
        state: After the last step.
        frozen: Weights that stay as they are, none or one tree of them.
        finite: Whether all that the last step computed was.
    """

    state: Any
    frozen: tuple[Any, ...] = ()
    finite: Any = True

    def step(self, program: Any, batch: Any) -> None:
        """Take a step and wait for it."""
        self.state, metrics = program(self.state, batch, *self.frozen)
        jax.block_until_ready((self.state, metrics))
        self.finite = metrics.finite


def start_training(config: Config, like: Any, *frozen_like: Any) -> Training:
    """A training with weights of its own.

    Args:
        config: Settings of the training.
        like: The state, as `jax.ShapeDtypeStruct`s with shardings.
        *frozen_like: The weights that stay as they are, likewise; none or one tree.
    """
    optimizer = build(config, **shape_of(config)).optimizer
    params = weights_maker(like.params)(jax.random.key(0))
    sharding = jax.tree.map(lambda leaf: leaf.sharding, like)
    state = state_from(params, optimizer, jax.random.key(1), sharding)
    frozen = tuple(weights_maker(each)(jax.random.key(3)) for each in frozen_like)
    return Training(state, frozen)


def measure_training(
    case: Case, make_config: Callable[[bool, str, int], Config], batch_sizes: Iterable[int]
) -> None:
    """Steps at growing batch sizes, until one is slower than the last or does not fit."""
    training, flops, best, cost = None, None, 0.0, 0.0
    for batch_size in batch_sizes:
        if not case.has_time_for(1.3 * cost):
            case.leave_out("no time left", batch_size=batch_size)
            return
        begun = time.monotonic()
        config = make_config(case.tiny, case.variant, batch_size)
        work = training_work(config, case.mesh)
        flops = work.count().flops / batch_size if flops is None else flops
        program, found = case.compile(work, batch_size=batch_size)
        if program is None:
            return
        like, batch_like, *frozen_like = work.args
        training = training or start_training(config, like, *frozen_like)
        batch = inputs_maker(batch_like, num_classes(config))(jax.random.key(2))
        try:
            times = measured(partial(training.step, program, batch), case.rounds)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            case.leave_out("out of memory", batch_size=batch_size)
            return
        rate = batch_size / times["seconds"]
        case.write(
            "result",
            batch_size=batch_size,
            **times,
            images_per_second=rate,
            **case.speed(flops, rate),
            finite=bool(training.finite),
            **case.facts(work, found),
        )
        if rate <= best:
            return
        best, cost = rate, time.monotonic() - begun


def num_classes(config: Config) -> int:
    """Number of classes of the data; 1 for data without classes."""
    _, conditions = config.data.shape()
    return conditions if isinstance(conditions, int) else 1


def measure_dit(case: Case) -> None:
    """Training steps of DiT-XL/2."""
    measure_training(case, dit_config, (2, 4) if case.tiny else (32, 64, 128, 256, 512))


def measure_lora(case: Case) -> None:
    """Training steps of adapters of FLUX."""
    measure_training(case, lora_config, (1, 2) if case.tiny else (1, 2, 4, 8, 16))


def measure_sampling(case: Case, config: Config, dtype: Any, params: Any, **values: Any) -> Any:
    """Solves of one batch; gives the weights back for the next."""
    work = sampling_work(config, case.mesh, dtype)
    program, found = case.compile(work, **values)
    if program is None:
        return params
    if params is None:
        params = weights_maker(work.params)(jax.random.key(0))
    _, indices_like, cond_like = work.args
    num = work.examples
    indices = jax.device_put(jnp.arange(num, dtype=jnp.int32), indices_like.sharding)
    cond = inputs_maker(cond_like, num_classes(config))(jax.random.key(2))
    samples: Any = None

    def take() -> None:
        nonlocal samples
        samples = jax.block_until_ready(program(params, indices, cond))

    times = measured(take, min(case.rounds, 3))
    nfe, rate, counted = float(jnp.mean(samples.nfe)), num / times["seconds"], work.count()
    # The number of adaptive steps is unknown until the solve, so its operations are not counted.
    speed = case.speed(counted.flops / num, rate) if counted.unit == "batch" else {}
    case.write(
        "result",
        **values,
        batch_size=num,
        **times,
        images_per_second=rate,
        seconds_per_image=1 / rate,
        nfe=nfe,
        evaluations_per_second=nfe * rate,
        **speed,
        finite=bool(jnp.all(samples.succeeded)),
        **case.facts(work, found),
    )
    return params


def measure_flux(case: Case) -> None:
    """Solves of one picture by FLUX."""
    measure_sampling(case, flux_config(case.tiny), jnp.bfloat16, None)


def measure_adaptive(case: Case) -> None:
    """Solves by Tsit5, plain and guided, at two tolerances."""
    params, cost = None, 0.0
    for tolerance in (1e-3, 1e-4):
        for guidance in (1.0, 1.5):
            values = {"rtol": tolerance, "guidance": guidance}
            if not case.has_time_for(cost):
                case.leave_out("no time left", **values)
                continue
            begun = time.monotonic()
            config = adaptive_config(case.tiny, tolerance, guidance)
            params = measure_sampling(case, config, None, params, **values)
            # A tighter tolerance takes more steps.
            cost = max(cost, 2.0 * (time.monotonic() - begun))


def measure_about(case: Case) -> None:
    """What it runs on."""
    if not case.tiny and case.device.platform != "gpu":
        raise SystemExit(
            f"needs an NVIDIA GPU, got {case.device.device_kind}; --tiny runs on a CPU too"
        )
    stats = case.device.memory_stats() or {}
    report(
        {
            "line": "about",
            "device": case.device.device_kind,
            "platform": case.device.platform,
            "driver": driver_version(),
            "runtime": case.device.client.platform_version.replace("\n", " "),
            "versions": {"fmjax": fmjax.__version__} | versions(PACKAGES),
            "python": sys.version.split()[0],
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "bytes_limit": stats.get("bytes_limit"),
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "tiny": case.tiny,
        }
    )


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of those of the packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def driver_version() -> str | None:
    """Version of NVIDIA's driver; None if there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip()


MEASURES = {
    "about": measure_about,
    "dit": measure_dit,
    "flux": measure_flux,
    "lora": measure_lora,
    "adaptive": measure_adaptive,
}


def main() -> None:
    """Measure one case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=MEASURES)
    parser.add_argument("variant", nargs="?", default="")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    device = jax.devices()[0]
    MEASURES[args.part](Case(args.part, args.variant, device, args.tiny, args.seconds))


if __name__ == "__main__":
    main()
