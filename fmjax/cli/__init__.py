"""The command line. The only importer of tyro and the only place that prints."""

from fmjax.cli.main import main

__all__ = ["main"]
