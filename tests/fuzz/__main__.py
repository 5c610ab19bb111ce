"""Run the fuzzer (`python -m tests.fuzz --seed 1`) and print how to repeat each failed case."""

import argparse
import hashlib
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def fixture_folder() -> Path:
    """Cache folder of the fixtures; each version of the library's code has a separate one."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "fmjax").rglob("*.py")):
        digest.update(file.read_bytes())
    cache = os.environ.get("FMJAX_CACHE", str(Path(tempfile.gettempdir()) / "fmjax-fuzz"))
    return Path(cache) / "fuzz" / digest.hexdigest()[:12]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="seed of all cases")
    parser.add_argument("--cases", type=int, default=1000, help="number of in-process cases")
    parser.add_argument("--processes", type=int, default=100, help="number of process cases")
    parser.add_argument("--case", type=int, help="run only the in-process case of this number")
    parser.add_argument("--process", type=int, help="run only the process case of this number")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", default="", help="run only families whose name contains this")
    args = parser.parse_args()
    fixtures = fixture_folder()
    from tests.fuzz.fuzzing import fuzz, fuzz_processes

    def log(line: str) -> None:
        print(line, flush=True)

    single = args.case is not None or args.process is not None
    failures = []
    if args.process is None and (args.cases or args.case is not None):
        numbers = range(args.first, args.cases) if args.case is None else [args.case]
        failures += fuzz(args.seed, numbers, fixtures, only=args.only, log=log)
    if args.processes and args.case is None:
        numbers = range(args.processes) if args.process is None else [args.process]
        failures += fuzz_processes(args.seed, numbers, fixtures, only=args.only, log=log)
    total = "" if single else f" in {args.cases} cases and {args.processes} processes"
    print(f"seed {args.seed}: {len(failures)} failures{total}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
