"""Seeded fuzzer of the command line and the files it reads: `python -m tests.fuzz --seed 1`.

Each seed runs several cases of each family. The cases of `families.py` run within one process; the
cases of `processes.py` run as separate processes. A case fails if it prints a traceback, exits with
a code other than 0, 1, 2 or 128 + n, prints more than one line on stderr, leaves files behind or
takes more than 20 s. It also fails if it accepts invalid input or if its message lacks the expected
text.
"""
