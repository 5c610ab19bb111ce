"""Plans of training and sampling workloads as text, JSON and a figure of the memory use."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from fmjax.planning.collectives import Traffic
from fmjax.report.style import LIGHT, WIDTH, Theme, dress, new_figure

_GB = 1e9


def _gb(size: float) -> str:
    return f"{size / _GB:.2f}" if size >= 1e7 else f"{size / _GB:.2g}"


class Plan(NamedTuple):
    """Cost estimate of a training step or a batch of samples; sizes are in bytes per device.

    Attributes:
        name: Name of the config.
        work: "training" or "sampling".
        unit: Unit of `flops`, `traffic` and `roofline`: "step" of training, "batch" of samples, or
            one step of the solver if the number of steps is unknown.
        topology: Requested device topology.
        device: Kind of device.
        num_devices: Number of devices.
        mesh: Number of devices along the axes data, fsdp and tensor.
        batch_size: Number of examples per step or batch, over all devices.
        accumulation_steps: Number of microbatches per step.
        remat: Rematerialization of the network's blocks.
        num_parameters: Number of parameters of the network.
        arguments: Size of the training state and the batch.
        temporaries: Size of activations, gradients and gathered weights; None if compilation
            failed.
        peak: Peak memory use; None if compilation failed.
        memory: Memory of a device; None if unknown.
        fits: Whether `peak` is at most `memory`.
        flops: Operations per device, without recomputation.
        traffic: Data sent between devices, by kind of collective operation.
        roofline: Minimum seconds for computation, memory access, links, and the network between
            slices or nodes, if known.
        compile_seconds: Compilation time in seconds.
        price: Price of a device in dollars per hour, or None.
        repeats: Number of units of the entire job; None if unknown.
        kernels: Attention kernels in the compiled program; empty for plain matrix products.
    """

    name: str
    work: str
    unit: str
    topology: str
    device: str
    num_devices: int
    mesh: dict[str, int]
    batch_size: int
    accumulation_steps: int
    remat: str
    num_parameters: int
    arguments: float
    temporaries: float | None
    peak: float | None
    memory: float | None
    fits: bool
    flops: float
    traffic: dict[str, Traffic]
    roofline: dict[str, float]
    compile_seconds: float
    price: float | None
    repeats: int | None
    kernels: tuple[str, ...] = ()

    @property
    def step_seconds(self) -> float | None:
        """Minimum time of a training step or sample, in seconds: that of its slowest part alone."""
        return max(self.roofline.values()) if self.roofline else None

    @property
    def examples_per_second(self) -> float | None:
        """Maximum speed on all devices; None if the number of solver steps is unknown."""
        if self.step_seconds is None or self.repeats is None:
            return None
        return self.batch_size / self.step_seconds

    @property
    def dollars(self) -> float | None:
        """Minimum price of the entire job; None if unknown."""
        if self.step_seconds is None or self.price is None or self.repeats is None:
            return None
        return self.price * self.num_devices * self.repeats * self.step_seconds / 3600


def plan_text(plan: Plan) -> str:
    """Format the result of `fmjax plan` (memory, speed, price) as text for the terminal."""
    mesh = ", ".join(f"{name} {size}" for name, size in plan.mesh.items())
    rows = [
        ("devices", f"{plan.num_devices} {plan.device} ({plan.topology}): {mesh}"),
        (
            "batch",
            f"{plan.batch_size:,}{_microbatches(plan)}, remat {plan.remat}"
            if plan.work == "training"
            else f"{plan.batch_size:,} samples",
        ),
        ("parameters", f"{plan.num_parameters / 1e6:,.1f} million"),
        ("memory per device", _memory(plan)),
        ("operations", f"{plan.flops / 1e12:,.3g} TFLOP per {plan.unit} and device"),
    ]
    if plan.kernels:
        rows.append(("attention kernels", ", ".join(plan.kernels)))
    for kind, traffic in sorted(plan.traffic.items()):
        rows.append((kind, f"{traffic.count:,}, {traffic.bytes / _GB:,.3g} GB in total"))
    if plan.roofline:
        times = ", ".join(f"{name} {1e3 * s:,.3g} ms" for name, s in plan.roofline.items() if s)
        rate = plan.examples_per_second
        speed = "" if rate is None else f": at most {_rounded(rate)} examples/s"
        rows.append(("roofline", f"{times} per {plan.unit}{speed}"))
    if plan.dollars is not None:
        rows.append(
            (
                "price",
                f"at least {plan.dollars:,.2f} dollars for {plan.repeats:,} {_plural(plan.unit)}",
            )
        )
    if plan.compile_seconds:
        rows.append(("compilation time", f"{plan.compile_seconds:.0f} s"))
    width = max(len(name) for name, _ in rows)
    return "\n".join([plan.name, *(f"  {name:<{width}}  {value}" for name, value in rows)])


def _rounded(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _microbatches(plan: Plan) -> str:
    return f" in {plan.accumulation_steps} microbatches" if plan.accumulation_steps > 1 else ""


def _plural(unit: str) -> str:
    return "batches" if unit == "batch" else f"{unit}s"


def _memory(plan: Plan) -> str:
    parts = [f"arguments {_gb(plan.arguments)}"]
    if plan.temporaries is not None:
        parts.append(f"temporaries {_gb(plan.temporaries)}")
    if plan.peak is not None:
        parts.append(f"peak {_gb(plan.peak)}")
    text = ", ".join(parts) + " GB"
    if plan.memory is not None:
        text += f" of {plan.memory / _GB:.2f}: {'fits' if plan.fits else 'DOES NOT FIT'}"
    return text


def plans_json(plans: Sequence[Plan]) -> str:
    """Format plans as JSON, with the derived quantities."""
    entries = [
        plan._asdict()
        | {
            "traffic": {kind: traffic._asdict() for kind, traffic in plan.traffic.items()},
            "step_seconds": plan.step_seconds,
            "examples_per_second": plan.examples_per_second,
            "dollars": plan.dollars,
        }
        for plan in plans
    ]
    return json.dumps({"plans": entries}, indent=2) + "\n"


def plot_memory(plans: Sequence[Plan], *, theme: Theme = LIGHT) -> Figure:
    """Plot the memory use of each plan and the memory of a device."""
    figure = new_figure(WIDTH, 1.5 + 0.55 * len(plans), theme)
    axes = figure.subplots()
    dress(axes, theme, xlabel="GB per device", ylabel="", title="Memory by layout")
    names = [
        "data {data}, fsdp {fsdp}, tensor {tensor}".format(**plan.mesh)
        + f"\nbatch {plan.batch_size}{_microbatches(plan)}, remat {plan.remat}"
        for plan in plans
    ]
    arguments = [plan.arguments / _GB for plan in plans]
    peaks = [(plan.peak or 0.0) / _GB for plan in plans]
    temporaries = [max(peak - size, 0.0) for peak, size in zip(peaks, arguments, strict=True)]
    rows = range(len(plans))  # Not the names, since two plans may have the same name.
    axes.barh(rows, arguments, color=theme.cool[1], label="weights, moments, average")
    axes.barh(
        rows,
        temporaries,
        left=arguments,
        color=theme.warm[0],
        label="activations and gradients",
    )
    if plans[0].memory is not None:
        axes.axvline(
            plans[0].memory / _GB, color=theme.ink, linewidth=1.2, label="memory of the device"
        )
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    figure.legend(
        loc="outside lower left", ncols=3, frameon=False, fontsize=8, labelcolor=theme.ink
    )
    return figure
