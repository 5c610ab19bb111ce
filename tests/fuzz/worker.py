"""Process that runs fuzz cases and may hang or crash; `fuzzing.py` then starts another one.

It writes one line of JSON when a case starts and one when the case finishes.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the cases `sys.argv[3:]` of seed `sys.argv[1]` with fixtures in `sys.argv[2]`."""
    seed, fixtures, numbers = int(sys.argv[1]), Path(sys.argv[2]), map(int, sys.argv[3:])
    lines = os.fdopen(os.dup(1), "w")
    # Discard what C libraries print to stdout.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def report(**fields: Any) -> None:
        lines.write(json.dumps(fields) + "\n")
        lines.flush()

    from tests.fuzz.case import find_problems, run_in_this_process
    from tests.fuzz.families import make_case
    from tests.fuzz.world import build

    fixtures = build(fixtures)
    for number in numbers:
        folder = Path(tempfile.mkdtemp(prefix="fmjax-fuzz-"))
        try:
            family, case = make_case(seed, number, fixtures, folder)
            report(started=number, family=family, case=str(case), folder=str(folder))
            outcome = run_in_this_process(case, folder)
            report(
                finished=number,
                problems=find_problems(case, outcome),
                out=outcome.out,
                err=outcome.err,
                traceback=outcome.traceback,
                code=outcome.code,
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
