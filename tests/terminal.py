"""Run processes in a pseudo-terminal, as a person does, and read what the screen got."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

COLOUR = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "FORCE_COLOR": "1"}
"""A terminal with colours, and a wish for them."""

_SEVERAL = """
import fcntl, json, os, struct, sys, termios
from fmjax.cli.main import main
for columns, arguments in json.loads(sys.argv[1]):
    os.environ.pop("COLUMNS", None)
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    try:
        main(arguments)
    except SystemExit as error:
        code = error.code
    print(f"\\x00{code}\\x00", end="", flush=True)
"""


def in_terminal(
    command: list[str],
    *,
    columns: int = 80,
    timeout: float = 120.0,
    cwd: Path | None = None,
    **environment: str,
) -> tuple[int, str]:
    """Run one process with a terminal of a width.

    Returns:
        Its exit code, and all that it wrote to the terminal: stdout and stderr as they came.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        command, cwd=cwd, stdin=slave, stdout=slave, stderr=slave, env=env | environment
    ) as child:
        os.close(slave)
        give_up, screen = time.monotonic() + timeout, b""
        while time.monotonic() < give_up:
            if select.select([master], [], [], 0.2)[0]:
                try:
                    piece = os.read(master, 65536)
                except OSError:  # Linux's end of file, of a terminal.
                    break
                screen += piece
                if not piece:
                    break
        else:
            child.kill()
        os.close(master)
    return child.wait(), screen.decode("utf-8", "replace").replace("\r\n", "\n")


def commands_in_terminal(
    commands: list[tuple[int, list[str]]], **environment: str
) -> list[tuple[int, str]]:
    """Run commands of fmjax one after the other in one process: columns and arguments of each.

    Returns:
        The exit code and the screen of each.
    """
    import json

    python = [sys.executable, "-c", _SEVERAL, json.dumps(commands)]
    code, screen = in_terminal(python, **(COLOUR | environment))
    assert code == 0, screen
    parts = screen.split("\0")
    return [(int(code), text) for text, code in zip(parts[::2], parts[1::2], strict=False)]
