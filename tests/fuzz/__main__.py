"""`python -m tests.fuzz --seed 1`: count wrong cases, and show how to repeat each."""

import argparse
import hashlib
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def where() -> Path:
    """Where the world is kept: one for each state of the library."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "fmjax").rglob("*.py")):
        digest.update(path.read_bytes())
    cache = os.environ.get("FMJAX_CACHE", str(Path(tempfile.gettempdir()) / "fmjax-fuzz"))
    return Path(cache) / "fuzz" / digest.hexdigest()[:12]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=1000, help="in this process")
    parser.add_argument("--processes", type=int, default=100, help="each a process")
    parser.add_argument("--case", type=int, help="this one alone")
    parser.add_argument("--process", type=int, help="this process alone")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", default="", help="classes whose name holds this text")
    asked = parser.parse_args()
    world = where()
    from tests.fuzz.fuzzing import fuzz, fuzz_processes

    def say(line: str) -> None:
        print(line, flush=True)

    alone = asked.case is not None or asked.process is not None
    bad = []
    if asked.process is None and (asked.cases or asked.case is not None):
        numbers = range(asked.first, asked.cases) if asked.case is None else [asked.case]
        bad += fuzz(asked.seed, numbers, world, only=asked.only, say=say)
    if asked.processes and asked.case is None:
        numbers = range(asked.processes) if asked.process is None else [asked.process]
        bad += fuzz_processes(asked.seed, numbers, world, only=asked.only, say=say)
    counted = "" if alone else f" of {asked.cases} cases and {asked.processes} processes"
    print(f"seed {asked.seed}: {len(bad)} wrong{counted}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
