"""Run processes in a pseudo-terminal and read their output."""

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

COLOR = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "FORCE_COLOR": "1"}
"""Environment variables of a terminal with colors, and a setting that forces them."""

_RUN_COMMANDS = """
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
    """Run a process in a terminal with `columns` columns.

    Returns:
        The exit code, and stdout and stderr in the order they were written.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        command, cwd=cwd, stdin=slave, stdout=slave, stderr=slave, env=env | environment
    ) as child:
        os.close(slave)
        deadline, screen = time.monotonic() + timeout, b""
        while time.monotonic() < deadline:
            if select.select([master], [], [], 0.2)[0]:
                try:
                    chunk = os.read(master, 65536)
                except OSError:  # End of file of a terminal on Linux.
                    break
                screen += chunk
                if not chunk:
                    break
        else:
            child.kill()
        os.close(master)
    return child.wait(), screen.decode("utf-8", "replace").replace("\r\n", "\n")


def commands_in_terminal(
    commands: list[tuple[int, list[str]]], **environment: str
) -> list[tuple[int, str]]:
    """Run fmjax commands in one process; each is given as terminal width and arguments.

    Returns:
        The exit code and the output of each command.
    """
    import json

    python = [sys.executable, "-c", _RUN_COMMANDS, json.dumps(commands)]
    code, screen = in_terminal(python, **(COLOR | environment))
    assert code == 0, screen
    parts = screen.split("\0")
    return [(int(code), text) for text, code in zip(parts[::2], parts[1::2], strict=False)]
