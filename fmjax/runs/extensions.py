"""The record of a run whose number of steps was changed after some steps were trained."""

import json
from typing import NamedTuple

from fmjax._json import Count, Size, read_json
from fmjax.runs.folder import RunFolder, write_text


class Extension(NamedTuple):
    """A change of the number of training steps of a run.

    Attributes:
        step: Number of steps that were trained before the change.
        old_num_steps: Number of steps of the run before the change.
        num_steps: Number of steps of the run after the change.
    """

    step: Count
    old_num_steps: Size
    num_steps: Size

    def __str__(self) -> str:
        kind = "Extended" if self.num_steps > self.old_num_steps else "Shortened"
        return (
            f"{kind} from {self.old_num_steps:,} to {self.num_steps:,} steps after "
            f"{self.step:,} steps"
        )


class _Extensions(NamedTuple):
    """Contents of `extensions.json`."""

    extensions: tuple[Extension, ...]


def read_extensions(folder: RunFolder, num_steps: int) -> tuple[Extension, ...]:
    """Read the changes of the number of steps of a run, in order.

    Args:
        folder: The run folder.
        num_steps: Number of steps in the config of the run. The file is written before the config,
            so a last change to another number was interrupted and is left out.

    Raises:
        ValueError: If the file is damaged.
    """
    if not folder.extensions.is_file():
        return ()
    extensions = read_json(folder.extensions, _Extensions).extensions
    if extensions and extensions[-1].num_steps != num_steps:
        return extensions[:-1]
    return extensions


def add_extension(folder: RunFolder, extension: Extension) -> None:
    """Append a change of the number of steps; call this before the config is written."""
    extensions = (*read_extensions(folder, extension.old_num_steps), extension)
    entries = [entry._asdict() for entry in extensions]
    write_text(folder.extensions, json.dumps({"extensions": entries}) + "\n")
