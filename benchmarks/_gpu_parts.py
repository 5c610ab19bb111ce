"""The measurements of `gpu.py`, one case per process.

    python benchmarks/_gpu_parts.py dit none --seconds 110 [--tiny]

Results are written to standard output as lines of JSON as soon as they are known. The measured
programs are those of `fmjax train`, `fmjax generate` and `fmjax sample`: the same configs and
jitted functions, compiled once and called with arrays that were created on the device.
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
from jax.sharding import Mesh
from jax.stages import Compiled as Executable
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

import fmjax
from fmjax._arrays import Params, PRNGKey, TextShape
from fmjax._memory import is_out_of_memory
from fmjax._specs import CondSpec
from fmjax.config import Config, Sampling, build, num_parameters
from fmjax.data import ArrayData, EncodedData
from fmjax.jobs.planning.workloads import Work, sampling_batch, training_step
from fmjax.networks import DIT_XL, FluxConfig, LoRAConfig
from fmjax.planning import CHIPS
from fmjax.planning.compile import Compiled, OutOfMemory, executable_of
from fmjax.runs.load_config import load_config
from fmjax.sharding import make_mesh
from fmjax.training import TrainState, state_from

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
STARTED_AT = time.monotonic()
SPARE_SECONDS = 10.0  # Measurements must end this long before the time limit.
STD = 0.02  # Standard deviation of the random weights.


def changed(config: Config, **changes: dict[str, object]) -> Config:
    """Replace fields of parts of a config, for example `network={"remat": "full"}`."""
    parts = {
        name: dataclasses.replace(getattr(config, name), **fields)
        for name, fields in changes.items()
    }
    return dataclasses.replace(config, **parts)


def dit_config(tiny: bool, remat: str, batch_size: int) -> Config:
    """Return the training of DiT-XL/2 on latents of 256x256 images."""
    config = load_config(CONFIGS / "imagenet256_sit.py")
    sizes: dict[str, object] = dict(
        width=DIT_XL.width, num_layers=DIT_XL.num_layers, num_heads=DIT_XL.num_heads
    )
    if tiny:
        config = tiny_latents(config)
        sizes = dict(width=32, num_layers=2, num_heads=2)
    return changed(config, network=sizes | {"remat": remat}, training={"batch_size": batch_size})


def adaptive_config(tiny: bool, tolerance: float, guidance: float) -> Config:
    """Return the sampling of DiT-B/2 with Tsit5."""
    config = load_config(CONFIGS / "imagenet256_sit.py")
    num_samples = 64
    if tiny:
        config = changed(tiny_latents(config), network=dict(width=32, num_layers=2, num_heads=2))
        num_samples = 4
    sampling = Sampling.of(
        num_samples=num_samples,
        batch_size=num_samples,
        solver="tsit5",
        rtol=tolerance,
        atol=tolerance,
        guidance=guidance,
    )
    return dataclasses.replace(config, sampling=sampling)


def flux_config(tiny: bool) -> Config:
    """Return the sampling of one 1024x1024 image with the sizes of FLUX.1-dev, 28 Euler steps."""
    config = load_config(CONFIGS / "flux_dev.py")
    config = changed(
        config, network={"remat": "none"}, sampling={"num_samples": 1, "batch_size": 1}
    )
    return tiny_flux(config) if tiny else config


def lora_config(tiny: bool, remat: str, batch_size: int) -> Config:
    """Return the training of LoRA adapters of rank 16 with the sizes of FLUX.1-dev at 1024x1024."""
    config = load_config(CONFIGS / "finetune_flux.py")
    config = changed(
        config,
        network={"remat": remat},
        training={"batch_size": batch_size},
        pretrained={"lora": LoRAConfig(rank=16, alpha=16.0)},
    )
    return tiny_flux(config) if tiny else config


def tiny_latents(config: Config) -> Config:
    """Replace the data of a config by latents of shape 8x8x4, for --tiny."""
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


def shape_of(config: Config) -> tuple[tuple[int, ...], CondSpec]:
    """Return the shape of an example, and the kind and size of its condition."""
    return config.data.shape()


def training_work(config: Config, mesh: Mesh) -> Work:
    """Return the training step."""
    event_shape, conditions = shape_of(config)
    return training_step(config, mesh, event_shape=event_shape, conditions=conditions)


def sampling_work(config: Config, mesh: Mesh, dtype: DTypeLike | None = None) -> Work:
    """Return the solve of one batch, with weights of a dtype; None keeps float32."""
    event_shape, conditions = shape_of(config)
    work = sampling_batch(config, mesh, event_shape=event_shape, conditions=conditions)
    if dtype is None:
        return work
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding), work.params
    )
    return work._replace(args=(params, *work.args[1:]), params=params)


def weights_maker(like: PyTree) -> Callable[[PRNGKey], Params]:
    """Return a function that creates random weights on the device.

    The weights are normal with standard deviation `STD`, around 1 if they scale a normalization and
    around 0 otherwise. Weights that are exactly zero, as in a new network, would be unrealistic:
    arithmetic on zeros takes less power and can be faster. Stacked layers are created one after
    another and cast at once, so that the device does not hold all of them in float32.

    Args:
        like: `jax.ShapeDtypeStruct`s with shardings, nested dicts by name.
    """
    named_leaves, tree = jax.tree_util.tree_flatten_with_path(like)

    def make_leaf(name: str, leaf: jax.ShapeDtypeStruct, key: PRNGKey) -> Array:
        shape = leaf.shape[1:] if len(leaf.shape) == 3 else leaf.shape
        mean = 1.0 if name.endswith("scale") else 0.0

        def normal(key: PRNGKey) -> Array:
            return (mean + STD * jax.random.normal(key, shape)).astype(leaf.dtype)

        if shape == leaf.shape:
            return normal(key)
        return jax.lax.map(normal, jax.random.split(key, leaf.shape[0]))

    def make(key: PRNGKey) -> Params:
        keys = jax.random.split(key, len(named_leaves))
        leaves = [
            make_leaf(names[-1].key, leaf, leaf_key)
            for (names, leaf), leaf_key in zip(named_leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(tree, leaves)

    return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, like))


def inputs_maker(like: PyTree, num_classes: int) -> Callable[[PRNGKey], PyTree]:
    """Return a function that creates random inputs on the device.

    Floats are standard normal; integers are class labels.

    Args:
        like: `jax.ShapeDtypeStruct`s with shardings.
        num_classes: Number of classes.
    """
    leaves_like, tree = jax.tree.flatten(like)

    def make_leaf(leaf: jax.ShapeDtypeStruct, key: PRNGKey) -> Array:
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jax.random.randint(key, leaf.shape, 0, num_classes, leaf.dtype)
        return jax.random.normal(key, leaf.shape, leaf.dtype)

    def make(key: PRNGKey) -> PyTree:
        keys = jax.random.split(key, len(leaves_like))
        return jax.tree.unflatten(tree, list(map(make_leaf, leaves_like, keys)))

    return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, like))


class Case(NamedTuple):
    """One measured case.

    Attributes:
        part: Name of the part: dit, flux, lora, adaptive or about.
        variant: Rematerialization policy of a training; empty for the other parts.
        device: The GPU, or a CPU with --tiny.
        tiny: Whether sizes are small.
        seconds: Time limit of the process.
    """

    part: str
    variant: str
    device: Any
    tiny: bool
    seconds: float

    @property
    def mesh(self) -> Mesh:
        """A mesh of the device."""
        return make_mesh(devices=[self.device])

    @property
    def rounds(self) -> int:
        """Number of measured calls, after two warm-up calls."""
        return 2 if self.tiny else 5

    def write(self, line: str, **values: object) -> None:
        """Write a line of the results.

        Args:
            line: Type of the line.
            **values: Fields of the line.
        """
        elapsed = time.monotonic() - STARTED_AT
        report(
            {"line": line, "part": self.part, "case": self.variant, **values, "elapsed": elapsed}
        )

    def leave_out(self, reason: str, **values: object) -> None:
        """Write a line that names a measurement that is left out, and the reason."""
        self.write("left_out", **values, reason=reason)

    def has_time_for(self, seconds: float) -> bool:
        """Whether work of about this duration ends before the limit."""
        return time.monotonic() - STARTED_AT + seconds < self.seconds - SPARE_SECONDS

    def compile(self, work: Work, **values: object) -> tuple[Executable, Compiled] | None:
        """Return the compiled program and its figures, or None if it does not fit the memory.

        Args:
            work: The program.
            **values: Fields of the line that is written if it does not fit.
        """
        try:
            program, compiled = executable_of(work.fn, *work.args)
        except OutOfMemory as error:
            self.leave_out("out of memory in the compiler", bytes_needed=error.needed, **values)
            return None
        limit = (self.device.memory_stats() or {}).get("bytes_limit")
        if limit is not None and compiled.peak > limit:
            self.leave_out(
                "does not fit the memory",
                bytes_needed=compiled.peak,
                bytes_limit=limit,
                compile_seconds=compiled.seconds,
                **values,
            )
            return None
        return program, compiled

    def program_fields(self, work: Work, compiled: Compiled) -> dict[str, object]:
        """Return the fields of a result that describe the network and the program."""
        stats = self.device.memory_stats() or {}
        return {
            "num_parameters": num_parameters(work.params),
            "compile_seconds": compiled.seconds,
            "memory": {
                "arguments": compiled.arguments,
                "temporaries": compiled.temporaries,
                "peak": compiled.peak,
                "measured_peak": stats.get("peak_bytes_in_use"),
            },
            "kernels": list(compiled.kernels),
        }

    def speed(self, flops: float, rate: float) -> dict[str, float | None]:
        """Return the operations per second, and their share of the peak of the chip.

        Args:
            flops: Operations per image, without those repeated by rematerialization.
            rate: Images per second.
        """
        chip = CHIPS.get(self.device.device_kind)
        share = None if chip is None else flops * rate / chip.peak_flops
        return {"flops_per_image": flops, "teraflops": flops * rate / 1e12, "share_of_peak": share}


class Timing(NamedTuple):
    """Durations of a measured call.

    Attributes:
        seconds: Median of the seconds.
        seconds_quartiles: First and third quartile of the seconds.
        rounds: Number of measured calls.
    """

    seconds: float
    seconds_quartiles: tuple[float, float]
    rounds: int


def measured(call: Callable[[], object], rounds: int) -> Timing:
    """Time a call, after two warm-up calls."""
    seconds = take_turns({"call": call}, rounds, warmup=2)["call"]
    return Timing(statistics.median(seconds), spread(seconds), rounds)


@dataclasses.dataclass
class Training:
    """A training in progress.

    Attributes:
        state: Training state after the last step.
        frozen: Frozen weights: no tree or one.
        finite: Whether all values of the last step were finite.
    """

    state: TrainState
    frozen: tuple[Params, ...] = ()
    finite: Array | bool = True

    def step(self, program: Executable, batch: PyTree) -> None:
        """Run one training step and wait for it."""
        self.state, metrics = program(self.state, batch, *self.frozen)
        jax.block_until_ready((self.state, metrics))
        self.finite = metrics.finite


def start_training(config: Config, like: TrainState, *frozen_like: PyTree) -> Training:
    """Return a training with random weights.

    Args:
        config: Settings of the training.
        like: The training state, as `jax.ShapeDtypeStruct`s with shardings.
        *frozen_like: The frozen weights, as `jax.ShapeDtypeStruct`s with shardings: no tree or one.
    """
    optimizer = build(config, *shape_of(config)).optimizer
    params = weights_maker(like.params)(jax.random.key(0))
    sharding = jax.tree.map(lambda leaf: leaf.sharding, like)
    state = state_from(params, optimizer, jax.random.key(1), sharding)
    frozen = tuple(weights_maker(tree)(jax.random.key(3)) for tree in frozen_like)
    return Training(state, frozen)


def measure_training(
    case: Case, make_config: Callable[[bool, str, int], Config], batch_sizes: Iterable[int]
) -> None:
    """Measure training steps at growing batch sizes, until one is not faster or does not fit."""
    training, flops, best_rate, last_seconds = None, None, 0.0, 0.0
    for batch_size in batch_sizes:
        if not case.has_time_for(1.3 * last_seconds):
            case.leave_out("no time left", batch_size=batch_size)
            return
        started_at = time.monotonic()
        config = make_config(case.tiny, case.variant, batch_size)
        work = training_work(config, case.mesh)
        flops = work.count().flops / batch_size if flops is None else flops
        result = case.compile(work, batch_size=batch_size)
        if result is None:
            return
        program, compiled = result
        like, batch_like, *frozen_like = work.args
        training = training or start_training(config, like, *frozen_like)
        batch = inputs_maker(batch_like, num_classes(config))(jax.random.key(2))
        try:
            timing = measured(partial(training.step, program, batch), case.rounds)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            case.leave_out("out of memory", batch_size=batch_size)
            return
        rate = batch_size / timing.seconds
        case.write(
            "result",
            batch_size=batch_size,
            **timing._asdict(),
            images_per_second=rate,
            **case.speed(flops, rate),
            finite=bool(training.finite),
            **case.program_fields(work, compiled),
        )
        if rate <= best_rate:
            return
        best_rate, last_seconds = rate, time.monotonic() - started_at


def num_classes(config: Config) -> int:
    """Return the number of classes of the data; 1 for data without classes."""
    _, conditions = shape_of(config)
    return conditions if isinstance(conditions, int) else 1


def measure_dit(case: Case) -> None:
    """Measure training steps of DiT-XL/2."""
    measure_training(case, dit_config, (2, 4) if case.tiny else (32, 64, 128, 256, 512))


def measure_lora(case: Case) -> None:
    """Measure training steps of LoRA adapters of FLUX."""
    measure_training(case, lora_config, (1, 2) if case.tiny else (1, 2, 4, 8, 16))


def measure_sampling(
    case: Case,
    config: Config,
    dtype: DTypeLike | None,
    params: Params | None,
    **values: object,
) -> Params | None:
    """Measure solves of one batch.

    Args:
        case: The case.
        config: The experiment, with its sampling.
        dtype: Dtype of the weights; None is float32.
        params: The weights; None creates random ones.
        **values: Further fields of the result.

    Returns:
        The weights, for the next measurement.
    """
    work = sampling_work(config, case.mesh, dtype)
    result = case.compile(work, **values)
    if result is None:
        return params
    program, compiled = result
    if params is None:
        params = weights_maker(work.params)(jax.random.key(0))
    _, indices_like, cond_like = work.args
    num = work.examples
    indices = jax.device_put(jnp.arange(num, dtype=jnp.int32), indices_like.sharding)
    cond = inputs_maker(cond_like, num_classes(config))(jax.random.key(2))
    samples = None

    def solve() -> None:
        nonlocal samples
        samples = jax.block_until_ready(program(params, indices, cond))

    timing = measured(solve, min(case.rounds, 3))
    assert samples is not None
    nfe, rate, counted = float(jnp.mean(samples.nfe)), num / timing.seconds, work.count()
    # The number of adaptive steps is unknown before the solve, so its operations are not counted.
    speed = case.speed(counted.flops / num, rate) if counted.unit == "batch" else {}
    case.write(
        "result",
        **values,
        batch_size=num,
        **timing._asdict(),
        images_per_second=rate,
        seconds_per_image=1 / rate,
        nfe=nfe,
        evaluations_per_second=nfe * rate,
        **speed,
        finite=bool(jnp.all(samples.succeeded)),
        **case.program_fields(work, compiled),
    )
    return params


def measure_flux(case: Case) -> None:
    """Measure the sampling of one image with FLUX."""
    measure_sampling(case, flux_config(case.tiny), jnp.bfloat16, None)


def measure_adaptive(case: Case) -> None:
    """Measure sampling with Tsit5 at two tolerances, with and without guidance."""
    params, longest = None, 0.0
    for tolerance in (1e-3, 1e-4):
        for guidance in (1.0, 1.5):
            values = {"rtol": tolerance, "guidance": guidance}
            if not case.has_time_for(longest):
                case.leave_out("no time left", **values)
                continue
            started_at = time.monotonic()
            config = adaptive_config(case.tiny, tolerance, guidance)
            params = measure_sampling(case, config, None, params, **values)
            # Allow for the additional steps of a smaller tolerance.
            longest = max(longest, 2.0 * (time.monotonic() - started_at))


def measure_about(case: Case) -> None:
    """Write the line on the device, the driver and the package versions."""
    if not case.tiny and case.device.platform != "gpu":
        raise SystemExit(
            f"device must be an NVIDIA GPU, got {case.device.device_kind}; use --tiny on a CPU"
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
    """Return the versions of those packages that are installed."""
    installed = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver, or None."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return completed.stdout.split("\n")[0].strip()


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
