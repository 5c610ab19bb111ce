"""Entry point of `python -m fmjax.cli`."""

from fmjax.cli.main import main

main()
