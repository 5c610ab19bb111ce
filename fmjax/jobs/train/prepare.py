"""Lock, check and create the run folder of a training."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fmjax._checks import require, require_unicode
from fmjax._files import is_same_location, require_folder, require_outside
from fmjax._locks import is_leftover, is_lock, lock_folder, require_unlocked
from fmjax._specs import CondSpec, cond_spec_json, is_captions, num_classes
from fmjax.config import Config, to_json
from fmjax.data import Captions, Standardization, read_word_tokenizer
from fmjax.data.tokenizer import RULE
from fmjax.jobs.train.changes import accepted_changes, apply_changes
from fmjax.jobs.train.pairs import pairs_folder
from fmjax.jobs.train.start import require_start
from fmjax.runs.folder import RunFolder, read_class_names, read_config, select_texts, write_text
from fmjax.runs.released_weights import with_released_sizes
from fmjax.sharding import all_or_none, is_main

_MAX_CAPTIONS = 64  # Number of captions stored in a run folder.
# Files that are written before the config.
_WRITTEN_FIRST = {"model.json", "tokenizer.json", "standardization.json"}
# Name of the config while its run is being removed: it is renamed first and deleted last.
_REPLACED = ".replaced.json"


@contextmanager
def lock_run(folder: Path, config: Config, *, overwrite: bool = False) -> Iterator[None]:
    """Lock a run folder for training and results; process 0 holds the lock for all processes.

    All checks of the folder are made here, before data are read or pairs are generated.

    Args:
        folder: The run folder. It is created if missing, and removed if nothing is written to it.
        config: Config of the run.
        overwrite: Whether to replace a run in the folder.

    Raises:
        ValueError: If another process holds the lock, the folder contains other files or a run that
            cannot be resumed with this config, it is the teacher's folder or inside a checkpoint
            folder, or `config.start_from` is not a trained run.
        OSError: If the folder is not writable.
    """
    files = RunFolder(folder)
    check_texts(config)
    with ExitStack() as stack:
        with all_or_none("opening the run folder"):
            config = with_released_sizes(config)
            if is_main():
                require_folder(folder, "run folder")
                if config.reflow is not None:
                    teacher, pairs = Path(config.reflow.teacher), pairs_folder(config.reflow)
                    rule = "differ from the teacher's"
                    require(not is_same_location(folder, teacher), "run folder", rule, folder)
                    require_outside(pairs, folder, "reflow.pairs")
                require_start(config, files, overwrite=overwrite)
                stack.enter_context(lock_folder(folder, "run folder"))
                if (folder / _REPLACED).exists():  # An earlier removal was interrupted.
                    _remove_run(files)
                _existing_run(files, config, overwrite=overwrite)
                if overwrite:
                    require_unlocked(folder)
        yield


def prepare(
    folder: RunFolder,
    config: Config,
    event_shape: tuple[int, ...],
    conditions: CondSpec,
    *,
    captions: Captions | None = None,
    class_names: tuple[str, ...] | None = None,
    standardization: Standardization = Standardization(),  # noqa: B008 (has no state)
    overwrite: bool = False,
) -> list[str]:
    """Create the run folder, or prepare the run in it to be resumed with this config.

    A run may be resumed on another mesh, because its results do not depend on the mesh, with other
    options that do not change the training, and with another number of steps
    (`fmjax.jobs.train.changes`). The folder stores some captions and their tokenizer, so that
    sampling does not need the data.

    Args:
        folder: The run folder.
        config: Config of the run.
        event_shape: Shape of one example.
        conditions: What the model is conditioned on.
        captions: Captions of the data, for a model conditioned on them.
        class_names: Names of the classes, for a model conditioned on them; None if unknown.
        standardization: Mean and standard deviation of the data; empty if they are not
            standardized.
        overwrite: Whether to replace a run in the folder.

    Returns:
        One line for each option of an existing run that was changed.

    Raises:
        ValueError: If the folder contains a run that cannot be resumed with this config, or other
            files.
    """
    existing = _existing_run(folder, config, overwrite=overwrite)
    if existing is not None:
        _require_same_words(folder, captions)
        _require_same_classes(folder, conditions, class_names)
        return apply_changes(folder, config, existing)
    if folder.config.exists() or (folder.root / _REPLACED).exists():
        _remove_run(folder)
    model: dict[str, Any] = {
        "event_shape": event_shape,
        "conditions": cond_spec_json(conditions),
    }
    if num_classes(conditions) is not None and class_names is not None:
        model["class_names"] = class_names
    if is_captions(conditions):
        assert captions is not None
        stored = select_texts(captions.texts, _MAX_CAPTIONS)
        model["captions"] = stored
        captions.tokenizer.write(folder.tokenizer)
    if config.standardize:
        write_text(folder.standardization, json.dumps(standardization.to_json()))
    write_text(folder.model, json.dumps(model))
    # Written last, because a folder with a config counts as a run.
    write_text(folder.config, to_json(config))
    return []


def _existing_run(folder: RunFolder, config: Config, *, overwrite: bool) -> Config | None:
    """Return the config of the run in the folder that is to be resumed; None for a new run.

    Raises:
        ValueError: If the folder contains a run that cannot be resumed with this config, or other
            files.
    """
    root = folder.root
    if not root.exists() or (root / _REPLACED).exists():
        return None
    # A process that was killed while it created the folder leaves only the first files.
    files = (
        {file.name for file in root.iterdir() if not is_leftover(file)} if root.is_dir() else None
    )
    if files is not None and files <= _WRITTEN_FIRST:
        return None
    try:
        existing = read_config(root)
    except ValueError as error:
        raise ValueError(
            f"run folder {root} must be new, empty or contain a run, got other files ({error})"
        ) from error
    if overwrite:
        return None
    accepted_changes(folder, config, existing)
    return existing


def _remove_run(folder: RunFolder) -> None:
    """Remove the contents of a run folder, but not the folder itself, whose lock is held.

    The config is renamed first, so that after an interruption the folder does not count as a run
    and the next command continues the removal.
    """
    root, replaced = folder.root, folder.root / _REPLACED
    require_unlocked(root)
    if folder.config.exists():
        folder.config.replace(replaced)
    for entry in sorted(root.iterdir()):
        if entry == replaced or is_lock(entry):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    replaced.unlink(missing_ok=True)


def check_texts(config: Config) -> None:
    """Check that all strings of a config can be written to a UTF-8 file.

    Raises:
        ValueError: If a string is not valid Unicode; the message names the field.
    """

    def check(value: Any, name: str) -> None:
        if isinstance(value, str):
            require_unicode(name, value)
        elif isinstance(value, dict):
            for key, part in value.items():
                check(part, f"{name}.{key}" if name else key)
        elif isinstance(value, list):
            for part in value:
                check(part, name)

    check(json.loads(to_json(config)), "")


def tokenizer_rule(folder: RunFolder) -> int:
    """Return the version of the word-splitting rule: that of an existing run, or the newest."""
    return read_word_tokenizer(folder.tokenizer).rule if folder.tokenizer.is_file() else RULE


def _require_same_words(folder: RunFolder, captions: Captions | None) -> None:
    """Raise unless the tokenizer of the run is that of the captions."""
    if captions is not None:
        is_same = read_word_tokenizer(folder.tokenizer).to_json() == captions.tokenizer.to_json()
        rule = "have the words of the data's captions (replace the run with --overwrite)"
        require(is_same, f"{folder.tokenizer}", rule, "other words: the captions have changed")


def _require_same_classes(
    folder: RunFolder, conditions: CondSpec, class_names: tuple[str, ...] | None
) -> None:
    """Raise unless the classes of the run, if they have names, are those of the data."""
    stored = read_class_names(folder.root)
    if stored and class_names is not None and num_classes(conditions) is not None:
        rule = "have the class names of the data (replace the run with --overwrite)"
        is_same = stored == tuple(class_names)
        require(is_same, f"{folder.model}", rule, "other names: the classes have changed")
