"""Changes of the config of an existing run: which are accepted, and what they need.

Options that do not change the training may change at any time. The number of steps may change to
any number that is not yet passed: the learning rate follows the schedule of the new number from the
next step. All other options must stay as they are.
"""

import dataclasses
import json
from typing import NamedTuple

from fmjax._checks import require
from fmjax._files import lock_outputs
from fmjax.config import Config, to_json
from fmjax.config.sampling import flat_settings
from fmjax.runs.extensions import Extension, add_extension
from fmjax.runs.folder import RunFolder, with_current_defaults, write_text
from fmjax.training import learning_rate_schedule, newest_step

_FREE_SECTIONS = ("sampling", "compare", "evaluation")
_FREE_OPTIONS = tuple(
    f"training.{name}"
    for name in ("log_every", "checkpoint_every", "checkpoints_kept", "preview_samples")
)
_NUM_STEPS = "training.num_steps"
_MAX_SHOWN = 4  # Number of options in a message.
_MAX_VALUE = 60  # Number of characters of a value in a message.


class Change(NamedTuple):
    """A field in which two configs differ, as JSON.

    Attributes:
        option: Dotted name of the field, such as `training.num_steps`.
        old: Value in the existing run; None if it has no such field.
        new: Value in the new config; None if it has no such field.
    """

    option: str
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.option}: {_shown(self.old)} -> {_shown(self.new)}"

    @property
    def is_free(self) -> bool:
        """Whether the option does not change the training."""
        section, _, _ = self.option.partition(".")
        return section in _FREE_SECTIONS or self.option in _FREE_OPTIONS


def _as_json(config: Config) -> dict[str, object]:
    """Return a config as JSON, with the short names of the settings of sampling."""
    document = json.loads(to_json(config))
    document["sampling"] = flat_settings(config.sampling)
    if config.reflow is not None:
        document["reflow"]["sampling"] = flat_settings(config.reflow.sampling)
    return document


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 3] + "..."


def changes(new: object, old: object, name: str = "") -> list[Change]:
    """Return the fields in which two JSON values differ.

    Args:
        new: A JSON value.
        old: The JSON value to compare with.
        name: Dotted name of the values, as a prefix.
    """
    if isinstance(new, dict) and isinstance(old, dict):
        keys = list(new) + [key for key in old if key not in new]
        parts = (
            changes(new.get(key), old.get(key), f"{name}.{key}" if name else key) for key in keys
        )
        return [change for part in parts for change in part]
    return [] if new == old else [Change(name, old, new)]


def accepted_changes(folder: RunFolder, config: Config, existing: Config) -> list[Change]:
    """Return the differences of a config from that of an existing run, if a run may have them.

    The mesh is ignored, because results do not depend on it.

    Args:
        folder: The run folder.
        config: The new config.
        existing: Config of the run in the folder.

    Raises:
        ValueError: If an option that changes the training differs, or the run has more steps than
            the new config.
    """
    config = dataclasses.replace(with_current_defaults(config), mesh=existing.mesh)
    found = changes(_as_json(config), _as_json(existing))
    refused = [change for change in found if not change.is_free and change.option != _NUM_STEPS]
    if refused:
        shown = [
            f"{change.option} ({_shown(change.old)} -> {_shown(change.new)})"
            for change in refused[:_MAX_SHOWN]
        ]
        more = ", ..." if refused[_MAX_SHOWN:] else ""
        raise ValueError(
            f"run folder {folder.root} must be new or contain a run with this config, got "
            f"different {', '.join(shown)}{more} (choose another folder with --run, replace the "
            f"run with --overwrite, or start a new run from its weights with --start-from)"
        )
    trained, num_steps = newest_step(folder.checkpoints) or 0, config.training.num_steps
    rule = f"be at least {trained}, the steps already trained in run folder {folder.root}"
    hint = "(choose another folder with --run, or replace the run with --overwrite)"
    changed = num_steps != existing.training.num_steps
    fits = not changed or num_steps >= trained
    require(fits, _NUM_STEPS, rule, f"{num_steps} {hint}")
    return found


def apply_changes(folder: RunFolder, config: Config, existing: Config) -> list[str]:
    """Write the accepted changes of a config to a run folder, whose lock is held.

    Results of a finished run that belong to other settings are removed, so that they are made
    again. A run that has trained some steps records a change of the number of steps in
    `extensions.json`. The config is written last.

    Args:
        folder: The run folder.
        config: The new config.
        existing: Config of the run in the folder.

    Returns:
        One line for each changed option: its name, its old and its new value. For a change of the
        number of steps, also the old and new learning rates of the next step, if they are known.

    Raises:
        ValueError: If the changes are refused, or another process is writing a result that belongs
            to other settings.
    """
    found = accepted_changes(folder, config, existing)
    if not found:
        return []
    config = dataclasses.replace(config, mesh=existing.mesh)
    trained = newest_step(folder.checkpoints) or 0
    old_num_steps, num_steps = existing.training.num_steps, config.training.num_steps
    if trained >= num_steps:
        _remove_outdated(folder, found)
    if trained and num_steps != old_num_steps:
        add_extension(folder, Extension(trained, old_num_steps, num_steps))
    write_text(folder.config, to_json(config))
    return [
        f"{change}{_rates(config, existing, trained)}"
        if change.option == _NUM_STEPS
        else f"{change}"
        for change in found
    ]


def _rates(config: Config, existing: Config, trained: int) -> str:
    """Describe the learning rates of the next step, with the old and new numbers of steps.

    They are unknown, and left out, for a user's optimizer without a learning rate.
    """
    schedules = [
        learning_rate_schedule(run.optimizer, run.training.num_steps) for run in (existing, config)
    ]
    if trained in (0, config.training.num_steps) or None in schedules:
        return ""
    old, new = (float(schedule(trained)) for schedule in schedules if schedule is not None)
    return f" (learning rate of step {trained + 1}: {old:.4g} -> {new:.4g})"


def _remove_outdated(folder: RunFolder, found: list[Change]) -> None:
    """Remove the results of a finished run that were made with other settings."""
    options = [change.option for change in found]

    def changed(*prefixes: str) -> bool:
        return any(option.startswith(prefixes) for option in options)

    outdated = {
        folder.sample_grid: changed("sampling."),
        folder.evaluation: changed("sampling.", "evaluation."),
        folder.comparison: changed("compare.", "evaluation.classifier"),
    }
    for file in (file for file, is_outdated in outdated.items() if is_outdated and file.exists()):
        with lock_outputs(file, name="run folder"):
            file.unlink()
