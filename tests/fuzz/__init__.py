"""A seeded fuzzer of the command line and of what it reads; `python -m tests.fuzz --seed 1`.

Every seed has cases of every class (`families.py` in process, `processes.py` as processes), each
several times with other details. A case is wrong if it ends in a traceback, with an exit code
other than 0, 1, 2 or 128 + n, with more than one line on stderr, with a file left behind, or after
more than 20 s. It is also wrong if input that cannot be right is accepted, or if the message lacks
what it must say.
"""
