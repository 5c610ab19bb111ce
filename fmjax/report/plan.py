"""Plans to read: text, JSON, and a picture of the memory."""

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
    """A training step, or a batch of samples, on some devices; bytes are those of one device.

    Attributes:
        name: Of the config.
        work: "training" or "sampling".
        unit: What operations, bytes sent and seconds are of: a step of the training, a batch of
            samples, or one step of the solver where their number is not known.
        topology: As it was asked for.
        device: Its kind.
        num_devices: How many.
        mesh: Devices along data, fsdp and tensor.
        batch_size: Examples of a step or batch, over all devices.
        accumulation_steps: Parts in which it is taken.
        remat: Rematerialisation of the network's blocks.
        num_parameters: Of the network.
        arguments: State and batch.
        temporaries: Activations, gradients and gathered weights; None where it does not compile.
        peak: The most at once; None likewise.
        memory: What a device has, None if that is not known.
        fits: Whether the peak is within it.
        flops: Operations, without what is done again.
        traffic: What is sent between devices, by kind.
        roofline: Seconds that computing, memory, links, and the network between slices or
            nodes take at their best, if that is known.
        compile_seconds: That the compiler took.
        price: Dollars of a device for an hour.
        repeats: Units of the whole job: its steps or batches; None if that is not known.
        kernels: Of attention in the compiled program; none where it is plain products.
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
        """A step takes at least so long: whatever is slowest, if all else hides behind it."""
        return max(self.roofline.values()) if self.roofline else None

    @property
    def examples_per_second(self) -> float | None:
        """On all devices, at most; None if a unit is less than the whole work on a batch."""
        if self.step_seconds is None or self.repeats is None:
            return None
        return self.batch_size / self.step_seconds

    @property
    def dollars(self) -> float | None:
        """Of the whole job, at least."""
        if self.step_seconds is None or self.price is None or self.repeats is None:
            return None
        return self.price * self.num_devices * self.repeats * self.step_seconds / 3600


def plan_text(plan: Plan) -> str:
    """A plan as lines of a terminal."""
    mesh = ", ".join(f"{name} {size}" for name, size in plan.mesh.items())
    rows = [
        ("devices", f"{plan.num_devices} {plan.device} ({plan.topology}): {mesh}"),
        (
            "batch",
            f"{plan.batch_size:,}{_parts(plan)}, remat {plan.remat}"
            if plan.work == "training"
            else f"{plan.batch_size:,} samples",
        ),
        ("parameters", f"{plan.num_parameters / 1e6:,.1f} million"),
        ("memory of a device", _memory(plan)),
        ("operations", f"{plan.flops / 1e12:,.3g} TFLOP a {plan.unit} and device"),
    ]
    if plan.kernels:
        rows.append(("attention by", ", ".join(plan.kernels)))
    for kind, traffic in sorted(plan.traffic.items()):
        rows.append((kind, f"{traffic.count:,} of {traffic.bytes / _GB:,.3g} GB together"))
    if plan.roofline:
        each = ", ".join(f"{name} {1e3 * s:,.3g} ms" for name, s in plan.roofline.items() if s)
        rate = plan.examples_per_second
        speed = "" if rate is None else f": at most {_rounded(rate)} examples/s"
        rows.append(("roofline", f"{each} a {plan.unit}{speed}"))
    if plan.dollars is not None:
        rows.append(
            (
                "price",
                f"{plan.dollars:,.2f} dollars for {plan.repeats:,} {_many(plan.unit)} at least",
            )
        )
    if plan.compile_seconds:
        rows.append(("compiled in", f"{plan.compile_seconds:.0f} s"))
    width = max(len(name) for name, _ in rows)
    return "\n".join([plan.name, *(f"  {name:<{width}}  {value}" for name, value in rows)])


def _rounded(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _parts(plan: Plan) -> str:
    return f" in {plan.accumulation_steps} parts" if plan.accumulation_steps > 1 else ""


def _many(unit: str) -> str:
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
    """All plans that were tried, with what follows from them."""
    found = [
        plan._asdict()
        | {
            "traffic": {kind: traffic._asdict() for kind, traffic in plan.traffic.items()},
            "step_seconds": plan.step_seconds,
            "examples_per_second": plan.examples_per_second,
            "dollars": plan.dollars,
        }
        for plan in plans
    ]
    return json.dumps({"plans": found}, indent=2) + "\n"


def plot_memory(plans: Sequence[Plan], *, theme: Theme = LIGHT) -> Figure:
    """What each plan holds on a device, against what a device has."""
    figure = new_figure(WIDTH, 1.5 + 0.55 * len(plans), theme)
    axes = figure.subplots()
    dress(axes, theme, xlabel="GB of a device", ylabel="", title="Memory by layout")
    names = [
        "data {data}, fsdp {fsdp}, tensor {tensor}".format(**plan.mesh)
        + f"\nbatch {plan.batch_size}{_parts(plan)}, remat {plan.remat}"
        for plan in plans
    ]
    arguments = [plan.arguments / _GB for plan in plans]
    peaks = [(plan.peak or 0.0) / _GB for plan in plans]
    rest = [max(peak - held, 0.0) for peak, held in zip(peaks, arguments, strict=True)]
    rows = range(len(plans))  # Two plans may have one name.
    axes.barh(rows, arguments, color=theme.cool[1], label="weights, moments, average")
    axes.barh(rows, rest, left=arguments, color=theme.warm[0], label="activations and gradients")
    if plans[0].memory is not None:
        axes.axvline(
            plans[0].memory / _GB, color=theme.ink, linewidth=1.2, label="the device's memory"
        )
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    figure.legend(
        loc="outside lower left", ncols=3, frameon=False, fontsize=8, labelcolor=theme.ink
    )
    return figure
