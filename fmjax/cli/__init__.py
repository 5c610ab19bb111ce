"""The `fmjax` command line: the only package that imports tyro and that prints."""

from fmjax.cli.main import main

__all__ = ["main"]
