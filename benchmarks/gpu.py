"""Training and sampling on one NVIDIA GPU: speed, memory and attention kernels, in 8 minutes.

    python benchmarks/gpu.py --output gpu.jsonl
    python benchmarks/gpu.py --parts dit lora     # dit, flux, lora, adaptive; or --skip flux
    python benchmarks/gpu.py --tiny               # small sizes: the script itself, on a CPU too

`dit` is the training step of DiT-XL/2, `flux` 28 Euler steps of FLUX.1-dev's sizes, `lora` a
training step of adapters of it, `adaptive` the sampling of DiT-B/2 with Tsit5; all with random
weights. Results are JSON objects, one a line, on standard output and added to the end of
`--output`, each as soon as it is there; docs/performance.md says what they mean. It needs the
extra `cuda12` or `cuda13`, and no data.

Each case runs in a process of its own with a time limit. One that fails becomes a line of its
own and the others go on; the exit status is then 1.
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
# In the order they run: what is least missed comes last, where time may have run out.
CASES = (
    ("dit", "none"),
    ("flux", ""),
    ("lora", "full"),
    ("adaptive", ""),
    ("dit", "full"),
    ("lora", "save_matmuls"),
)
LIMITS = {"about": 60.0, "dit": 110.0, "flux": 100.0, "lora": 110.0, "adaptive": 90.0}
LEAST = 20.0  # Seconds that a case needs to be worth a start.
ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # Seconds of compilation are to be real.
}
DEFAULTS = {
    "CUDA_VISIBLE_DEVICES": "0",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",  # Else JAX takes three quarters of the memory.
}
TINY = {  # A CPU compiles small programs quickly with these.
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE --xla_cpu_use_fusion_emitters=false"
}
Line = dict[str, Any]


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
        reason: Why it failed, in words; None if it did not.
        last_words: The end of what it wrote to standard error.
    """

    reason: str | None
    last_words: tuple[str, ...]


def run(
    command: Sequence[str],
    limit: float,
    on_line: Callable[[Line], None],
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run a command, and end it with all that it started after `limit` seconds.

    Args:
        command: It writes JSON objects to standard output, one a line. What else it writes goes
            to standard error.
        limit: Time limit in seconds.
        on_line: Gets each object as soon as it is written.
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

    def say(text: str) -> None:
        last_words.append(text.rstrip()[:500])
        print(text, end="", file=sys.stderr, flush=True)

    def read(stream: TextIO) -> None:
        with stream:
            for text in stream:
                found = parsed(text) if stream is process.stdout else None
                say(text) if found is None else on_line(found)

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
    return Ended(reason, tuple(last_words))


def parsed(text: str) -> Line | None:
    """The JSON object in a line of text, if it is one."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "line" in found else None


class Lines:
    """All lines so far; each goes to standard output and to the end of a file at once."""

    def __init__(self, output: Path | None):
        self.all: list[Line] = []
        self._output = output
        self._lock = threading.Lock()
        if output is not None:
            output.open("a").close()  # Now, rather than after the first result, if it cannot be.

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
    """For each training case, the result with the most images per second."""
    best: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line["line"] != "result" or line["part"] not in ("dit", "lora"):
            continue
        name = f"{line['part']} {line['case']}"
        if line["images_per_second"] > best.get(name, {}).get("images_per_second", 0.0):
            names = ("batch_size", "images_per_second", "teraflops", "share_of_peak")
            best[name] = {each: line[each] for each in names}
    return best


def named_limit(text: str) -> tuple[str, float]:
    """PART=SECONDS."""
    part, _, seconds = text.partition("=")
    if part not in LIMITS:
        raise argparse.ArgumentTypeError(f"must be PART=SECONDS, of {', '.join(LIMITS)}")
    return part, float(seconds)


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="a file to add the lines to")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        metavar="PART",
        help="measure these alone: " + ", ".join(PARTS),
    )
    parser.add_argument(
        "--skip", nargs="+", choices=PARTS, default=(), metavar="PART", help="leave these out"
    )
    parser.add_argument("--tiny", action="store_true", help="small sizes, which a CPU can do")
    parser.add_argument(
        "--seconds", type=float, default=480.0, help="for everything together (480)"
    )
    parser.add_argument(
        "--limit",
        type=named_limit,
        nargs="+",
        action="extend",
        default=[],
        metavar="PART=SECONDS",
        help="for each case of a part",
    )
    return parser


def main() -> None:
    """Run the cases one after the other."""
    args = make_parser().parse_args()
    environment = DEFAULTS | (TINY if args.tiny else {}) | os.environ | ENVIRONMENT
    started, lines, limits = time.monotonic(), Lines(args.output), LIMITS | dict(args.limit)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # The running case ends too.

    def measure(part: str, case: str = "") -> bool:
        left = args.seconds - (time.monotonic() - started)
        if left < min(LEAST, limits[part]):
            reason = f"no time left of {args.seconds:.4g} s"
            lines.add({"line": "left_out", "part": part, "case": case, "reason": reason})
            return True
        limit = min(left, limits[part])
        command = [sys.executable, str(SCRIPT), part, case, "--seconds", str(limit)]
        ended = run([*command, *(["--tiny"] if args.tiny else [])], limit, lines.add, environment)
        if ended.reason is not None:
            lines.add(
                {
                    "line": "failure",
                    "part": part,
                    "case": case,
                    "reason": ended.reason,
                    "last_words": ended.last_words,
                }
            )
        return ended.reason is None

    worked = measure("about")
    if worked:
        wanted = [each for each in CASES if each[0] in args.parts and each[0] not in args.skip]
        worked = all([measure(*each) for each in wanted])
    lines.add(
        {
            "line": "summary",
            "best": best_results(lines.all),
            "failures": sum(line["line"] == "failure" for line in lines.all),
            "seconds": round(time.monotonic() - started, 1),
        }
    )
    sys.exit(0 if worked else 1)


if __name__ == "__main__":
    main()
