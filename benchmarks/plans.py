"""Plans of published models on several machines, and weak scaling: the tables of docs/plans.md.

Each plan is one `fmjax plan` in a separate process. This needs the compilers (`fmjax[tpu]` and
`fmjax[cuda12]`) but no accelerator, and takes about half an hour on two cores:

    python benchmarks/plans.py            # all tables
    python benchmarks/plans.py scaling    # one table: dit, flux, released or scaling

The output is Markdown. Compile times are those of the machine that runs the benchmark.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).parents[1]
XL = ["--network.width", "1152", "--network.num-layers", "28", "--network.num-heads", "16"]
FSDP = ["--mesh.data", "1", "--mesh.fsdp", "-1"]
HALVES = ["--mesh.data", "2", "--mesh.fsdp", "128"]
Plan: TypeAlias = dict[str, Any]  # A plan in the JSON output of `fmjax plan`.
SIT, FLUX, SD3 = "imagenet256_sit", "flux_dev", "sd35_large"


def batch(size: int) -> list[str]:
    """Return the option of the batch size."""
    return ["--training.batch-size", str(size)]


DIT_ROWS = [
    ("DiT-B/2", SIT, "v5e:2x4", [*batch(256)]),
    ("DiT-B/2", SIT, "h100:8", [*batch(1024)]),
    ("DiT-XL/2", SIT, "v5e:4x4", [*XL, *FSDP, *batch(256), "--network.remat", "full"]),
    ("DiT-XL/2", SIT, "v5e:16x16", [*XL, *batch(2048), "--network.remat", "full"]),
    ("DiT-XL/2", SIT, "v5e:16x16", [*XL, *FSDP, *batch(2048), "--network.remat", "full"]),
    ("DiT-XL/2", SIT, "v5p:2x2x2", [*XL, *batch(256)]),
    ("DiT-XL/2", SIT, "v4:2x2x4", [*XL, *batch(256)]),
    ("DiT-XL/2", SIT, "h100:8", [*XL, *batch(256)]),
    ("DiT-XL/2", SIT, "a100:8", [*XL, *batch(256)]),
]
FLUX_ROWS = [
    ("FLUX 12B", FLUX, "v5e:16x16", [*batch(256)]),
    ("FLUX 12B", FLUX, "v5p:4x4x4", [*batch(64)]),
    ("FLUX 12B", FLUX, "v5p:4x4x4", [*batch(256)]),
    ("FLUX 12B", FLUX, "v6e:8x8", [*batch(64)]),
    ("FLUX 12B", FLUX, "h100:64", [*batch(64)]),
]
# Training and sampling of both released families, with one example per device or two.
RELEASED_ROWS = [
    # 2,432, the width of SD3.5 large, is divisible by 128, but not by 256.
    (name, config, grid, [*batch(num), *work, *(HALVES if (config, num) == (SD3, 256) else [])])
    for name, config in (("FLUX, 11.9 B", FLUX), ("SD3.5 large, 8.1 B", SD3))
    for grid, num in (("v5e:16x16", 256), ("v5p:2x4x4", 64), ("v6e:8x8", 64), ("h100:8", 8))
    for work in (
        [],
        [
            "--work",
            "sampling",
            "--sampling.batch-size",
            str(num),
            "--sampling.num-samples",
            str(num),
        ],
    )
]
# One slice of up to 256 chips, then several; weights are sharded within a slice.
SCALING_ROWS = [
    (
        f"{slices} x {grid}",
        SIT,
        grid,
        [
            *XL,
            "--mesh.data",
            str(slices),
            "--mesh.fsdp",
            str(chips),
            *batch(8 * slices * chips),
            "--network.remat",
            "full",
            "--num-slices",
            str(slices),
        ],
    )
    for grid, chips, slices in [
        ("v5e:2x4", 8, 1),
        ("v5e:8x8", 64, 1),
        ("v5e:16x16", 256, 1),
        ("v5e:16x16", 256, 4),
        ("v5e:16x16", 256, 16),
    ]
]


def make_plan(config: str, topology: str, options: list[str]) -> Plan:
    """Run `fmjax plan` and return its result."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        command = [
            sys.executable,
            "-m",
            "fmjax.cli",
            "plan",
            ROOT / "configs" / f"{config}.py",
            "--topology",
            topology,
            "--no-search",
            "--json",
            file,
            *options,
        ]
        completed = subprocess.run(command, capture_output=True, text=True, check=False)
        if not file.is_file():
            raise SystemExit(completed.stderr)
        return json.loads(file.read_text())["plans"][0]


def gb(size: float | None, digits: int = 2) -> str:
    """Format a number of bytes in GB."""
    return "-" if size is None else f"{size / 1e9:.{digits}f}"


def memory_columns(plan: Plan) -> str:
    """Format two columns: the memory that the program needs, and that of a device."""
    sizes = " / ".join(gb(plan[part]) for part in ("arguments", "temporaries", "peak"))
    return f"{sizes} | {gb(plan['memory'], 1)}{'' if plan['fits'] else ', does not fit'}"


def print_table(rows: list[tuple[str, str, str, list[str]]]) -> None:
    """Print a table of memory and speed."""
    print(
        "| model | devices | layout, batch, remat | arguments / temporaries / peak, GB | of | "
        "TFLOP each | sent, GB | at most, examples/s | compiled in |"
    )
    print("| --- " * 9 + "|")
    for name, config, topology, options in rows:
        plan = make_plan(config, topology, options)
        mesh = ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
        sent = sum(traffic["sent"] for traffic in plan["traffic"].values())
        layout = f"{mesh}, {plan['batch_size']}, {plan['remat']}"
        rate = plan["examples_per_second"]
        print(
            f"| {name} | {topology} | {layout} | {memory_columns(plan)} | "
            f"{plan['flops'] / 1e12:.1f} | {gb(sent)} | "
            f"{rate or 0:,.4g} | {plan['compile_seconds']:.0f} s |",
            flush=True,
        )


def print_released(rows: list[tuple[str, str, str, list[str]]]) -> None:
    """Print a table of memory and attention kernels."""
    print(
        "| model | work | devices | batch | arguments / temporaries / peak, GB | of | attention "
        "by | compiled in |"
    )
    print("| --- " * 8 + "|")
    for name, config, topology, options in rows:
        plan = make_plan(config, topology, options)
        kernels = ", ".join(f"`{kernel}`" for kernel in plan["kernels"]) or "plain products"
        print(
            f"| {name} | {plan['work']} | {topology} | {plan['batch_size']} | "
            f"{memory_columns(plan)} | {kernels} | {plan['compile_seconds']:.0f} s |",
            flush=True,
        )


def print_scaling(rows: list[tuple[str, str, str, list[str]]]) -> None:
    """Print a table of the traffic of each chip by kind of collective, at 8 images per chip."""
    print(
        "| chips | mesh | gathered, GB | summed, GB | sent, GB | across slices, GB | "
        "compute / links / network, ms |"
    )
    print("| --- " * 7 + "|")
    for _, config, topology, options in rows:
        plan = make_plan(config, topology, options)
        mesh = f"data {plan['mesh']['data']}, fsdp {plan['mesh']['fsdp']}"
        traffic = plan["traffic"]
        gathered = traffic.get("all-gather", {"bytes": 0.0})["bytes"]
        total = sum(collective["bytes"] for collective in traffic.values())
        sent = sum(collective["sent"] for collective in traffic.values())
        across = sum(collective["across"] for collective in traffic.values())
        milliseconds = (1e3 * plan["roofline"][part] for part in ("compute", "links", "network"))
        print(
            f"| {plan['num_devices']:,} | {mesh} | {gb(gathered)} | {gb(total - gathered)} | "
            f"{gb(sent)} | {gb(across)} | {' / '.join(f'{ms:.1f}' for ms in milliseconds)} |",
            flush=True,
        )


TABLES = {
    "dit": (print_table, DIT_ROWS),
    "flux": (print_table, FLUX_ROWS),
    "released": (print_released, RELEASED_ROWS),
    "scaling": (print_scaling, SCALING_ROWS),
}

if __name__ == "__main__":
    for name in sys.argv[1:] or TABLES:
        print_rows, rows = TABLES[name]
        print_rows(rows)
        print()
