"""The process in which cases run: it may hang or crash, and another one goes on after it.

It writes a line of JSON when a case begins and one when it ends.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the cases `sys.argv[3:]` of the seed `sys.argv[1]` on the world `sys.argv[2]`."""
    seed, world, numbers = int(sys.argv[1]), Path(sys.argv[2]), map(int, sys.argv[3:])
    lines = os.fdopen(os.dup(1), "w")
    # What libraries in C print belongs to nobody.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def tell(**about: Any) -> None:
        lines.write(json.dumps(about) + "\n")
        lines.flush()

    from tests.fuzz.case import run_here, wrong
    from tests.fuzz.families import case_number
    from tests.fuzz.world import build

    world = build(world)
    for number in numbers:
        folder = Path(tempfile.mkdtemp(prefix="fmjax-fuzz-"))
        try:
            name, case = case_number(seed, number, world, folder)
            tell(begun=number, name=name, case=str(case), folder=str(folder))
            outcome = run_here(case, folder)
            tell(
                ended=number,
                wrong=wrong(case, outcome),
                out=outcome.out,
                err=outcome.err,
                traceback=outcome.traceback,
                code=outcome.code,
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
