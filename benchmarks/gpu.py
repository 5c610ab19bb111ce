"""Benchmark of one NVIDIA GPU: speed, memory and attention kernels of training and sampling.

    python benchmarks/gpu.py --output gpu.jsonl
    python benchmarks/gpu.py --parts dit lora     # dit, flux, lora, adaptive; or --skip flux
    python benchmarks/gpu.py --tiny               # small sizes, to test the script; works on a CPU

The parts are: `dit`, training steps of DiT-XL/2; `flux`, 28 Euler steps of a network of the size of
FLUX.1-dev; `lora`, training steps of LoRA adapters of this network; `adaptive`, sampling of DiT-B/2
with Tsit5. All use random weights. The results are lines of JSON, written to standard output and
appended to `--output` as soon as they are known; docs/performance.md describes them. The benchmark
takes 8 minutes and needs the extra `cuda12` or `cuda13`, but no data.

Each case runs in a separate process with a time limit. A failed case becomes a line of the results,
and the other cases still run; the exit status is then 1.
"""

import argparse
import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

SCRIPT = Path(__file__).with_name("_gpu_parts.py")
PARTS = ("dit", "flux", "lora", "adaptive")
# In the order in which they run: the least important cases come last, when time may run out.
CASES = (
    ("dit", "none"),
    ("flux", ""),
    ("lora", "full"),
    ("adaptive", ""),
    ("dit", "full"),
    ("lora", "save_matmuls"),
)
LIMITS = {"about": 60.0, "dit": 110.0, "flux": 100.0, "lora": 110.0, "adaptive": 90.0}
MIN_SECONDS = 20.0  # A case is not started if less time is left.
ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # Compile times are measured.
}
DEFAULTS = {
    "CUDA_VISIBLE_DEVICES": "0",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",  # The default of JAX is 0.75.
}
TINY = {  # Fast compilation on a CPU.
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE --xla_cpu_use_fusion_emitters=false"
}
Line = dict[str, Any]


class ProcessResult(NamedTuple):
    """How a process ended.

    Attributes:
        reason: Why the process failed; None if it succeeded.
        last_words: Last lines of its standard error.
    """

    reason: str | None
    last_words: tuple[str, ...]


def run(
    command: Sequence[str],
    limit: float,
    on_line: Callable[[Line], None],
    environment: Mapping[str, str] | None = None,
) -> ProcessResult:
    """Run a command, and kill it and its child processes after `limit` seconds.

    Args:
        command: Command that writes lines of JSON to standard output. All other output is copied
            to standard error.
        limit: Time limit in seconds.
        on_line: Called with each JSON object as soon as it is written.
        environment: Environment of the command; None takes that of this process.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )
    last_words: collections.deque[str] = collections.deque(maxlen=15)

    def echo(text: str) -> None:
        last_words.append(text.rstrip()[:500])
        print(text, end="", file=sys.stderr, flush=True)

    def read(stream: TextIO) -> None:
        with stream:
            for text in stream:
                line = parse_line(text) if stream is process.stdout else None
                echo(text) if line is None else on_line(line)

    readers = [
        threading.Thread(target=read, args=(stream,), daemon=True)
        for stream in (process.stdout, process.stderr)
    ]
    for reader in readers:
        reader.start()
    reason = None
    try:
        code = process.wait(timeout=limit)
        if code:
            reason = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
    except subprocess.TimeoutExpired:
        reason = f"time limit of {limit:.4g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
    for reader in readers:
        reader.join(timeout=10)
    return ProcessResult(reason, tuple(last_words))


def parse_line(text: str) -> Line | None:
    """Return the result in a line of text, or None if it is other output."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "line" in value else None


class Lines:
    """The lines of the results, each of which is written to standard output and a file at once.

    Args:
        output: File to append the lines to, or None.

    Attributes:
        all: The lines so far.
    """

    def __init__(self, output: Path | None):
        self.all: list[Line] = []
        self._output = output
        self._lock = threading.Lock()
        if output is not None:
            output.open("a").close()  # Fail before the first measurement if it is not writable.

    def add(self, line: Line) -> None:
        """Write a line."""
        text = json.dumps(line)
        with self._lock:
            self.all.append(line)
            print(text, flush=True)
            if self._output is not None:
                with self._output.open("a") as file:
                    file.write(text + "\n")
                    file.flush()
                    os.fsync(file.fileno())


def best_results(lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """Return the result with the most images per second of each training case."""
    best: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line["line"] != "result" or line["part"] not in ("dit", "lora"):
            continue
        name = f"{line['part']} {line['case']}"
        if line["images_per_second"] > best.get(name, {}).get("images_per_second", 0.0):
            names = ("batch_size", "images_per_second", "teraflops", "share_of_peak")
            best[name] = {field: line[field] for field in names}
    return best


def named_limit(text: str) -> tuple[str, float]:
    """Parse the time limit of a part, PART=SECONDS."""
    part, _, seconds = text.partition("=")
    if part not in LIMITS:
        raise argparse.ArgumentTypeError(f"must be PART=SECONDS, PART one of {', '.join(LIMITS)}")
    return part, float(seconds)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="file to append the results to")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        metavar="PART",
        help="parts to measure: " + ", ".join(PARTS),
    )
    parser.add_argument(
        "--skip", nargs="+", choices=PARTS, default=(), metavar="PART", help="parts to leave out"
    )
    parser.add_argument("--tiny", action="store_true", help="small sizes, which also run on a CPU")
    parser.add_argument(
        "--seconds", type=float, default=480.0, help="time limit in total (default: 480)"
    )
    parser.add_argument(
        "--limit",
        type=named_limit,
        nargs="+",
        action="extend",
        default=[],
        metavar="PART=SECONDS",
        help="time limit of each case of a part",
    )
    return parser


def main() -> None:
    """Run the cases one after another."""
    args = make_parser().parse_args()
    environment = DEFAULTS | (TINY if args.tiny else {}) | os.environ | ENVIRONMENT
    started_at, lines, limits = time.monotonic(), Lines(args.output), LIMITS | dict(args.limit)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # This also ends the running case.

    def measure(part: str, case: str = "") -> bool:
        remaining = args.seconds - (time.monotonic() - started_at)
        if remaining < min(MIN_SECONDS, limits[part]):
            reason = f"no time left (limit {args.seconds:.4g} s)"
            lines.add({"line": "left_out", "part": part, "case": case, "reason": reason})
            return True
        limit = min(remaining, limits[part])
        command = [sys.executable, str(SCRIPT), part, case, "--seconds", str(limit)]
        result = run([*command, *(["--tiny"] if args.tiny else [])], limit, lines.add, environment)
        if result.reason is not None:
            lines.add(
                {
                    "line": "failure",
                    "part": part,
                    "case": case,
                    "reason": result.reason,
                    "last_words": result.last_words,
                }
            )
        return result.reason is None

    succeeded = measure("about")
    if succeeded:
        parts = set(args.parts) - set(args.skip)
        succeeded = all([measure(part, case) for part, case in CASES if part in parts])
    lines.add(
        {
            "line": "summary",
            "best": best_results(lines.all),
            "failures": sum(line["line"] == "failure" for line in lines.all),
            "seconds": round(time.monotonic() - started_at, 1),
        }
    )
    sys.exit(0 if succeeded else 1)


if __name__ == "__main__":
    main()
