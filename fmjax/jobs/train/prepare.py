"""The folder of a run, made before its training or found to be this very run."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fmjax._arrays import Conditions, TextShape, TokenShape
from fmjax._checks import require, require_unicode
from fmjax._files import require_folder, require_outside, same_place
from fmjax._locks import is_left, is_lock, lock_folder, require_unlocked
from fmjax.config import Config, to_json
from fmjax.data import Captions, read_word_tokenizer
from fmjax.data.tokenizer import RULE
from fmjax.jobs.train.pairs import pairs_folder
from fmjax.runs.folder import RunFolder, as_read, read_config, some_texts, write_text
from fmjax.runs.released_weights import as_released
from fmjax.sharding import MeshConfig, all_or_none, is_main

_CAPTIONS_KEPT = 64
_FIRST = {"model.json", "tokenizer.json"}
# The config of a run that is being removed: it is renamed first, and removed last.
_REPLACED = ".replaced.json"


@contextmanager
def lock_run(path: Path, config: Config, *, overwrite: bool = False) -> Iterator[None]:
    """Hold a run folder for its training and results; of several processes the first does.

    Whatever the folder can refuse is refused here, before data are read or pairs are made.

    Args:
        path: The run folder. A missing one is made, and removed if nothing is written.
        config: Of the run.
        overwrite: Whether a run in it is to be replaced.

    Raises:
        ValueError: If another process holds the folder, it holds something else, or it is the
            teacher's folder or within a folder of checkpoints.
        OSError: If no file can be written there.
    """
    folder = RunFolder(path)
    check_texts(config)
    with ExitStack() as stack:
        with all_or_none("opening the run folder"):
            config = as_released(config)
            if is_main():
                require_folder(path, "run folder")
                if config.reflow is not None:
                    teacher, pairs = Path(config.reflow.teacher), pairs_folder(config.reflow)
                    rule = "be another than the teacher's"
                    require(not same_place(path, teacher), "run folder", rule, path)
                    require_outside(pairs, path, "reflow.pairs")
                stack.enter_context(lock_folder(path, "run folder"))
                if (path / _REPLACED).exists():  # Of a command that was killed in the removal.
                    _clear(folder)
                _found(folder, config, overwrite=overwrite)
                if overwrite:
                    require_unlocked(path)
        yield


def prepare(
    folder: RunFolder,
    config: Config,
    event_shape: tuple[int, ...],
    conditions: Conditions,
    *,
    captions: Captions | None = None,
    overwrite: bool = False,
) -> None:
    """Make the folder for a new run, or see that it holds this very run to go on with.

    A run may go on over another mesh: the numbers do not depend on it. Of captions it keeps some,
    and what makes numbers of them: to draw from it the data are not needed.

    Raises:
        ValueError: If it holds a run with another config, or things that are no run.
    """
    if _found(folder, config, overwrite=overwrite):
        _require_same_words(folder, captions)
        return
    if folder.config.exists() or (folder.path / _REPLACED).exists():
        _clear(folder)
    model: dict[str, Any] = {"event_shape": event_shape, "num_classes": conditions}
    if isinstance(conditions, TextShape):
        model |= {"num_classes": None, "text": dataclasses.asdict(conditions)}
    if isinstance(conditions, TokenShape):
        assert captions is not None
        kept = some_texts(captions.texts, _CAPTIONS_KEPT)
        tokens = dataclasses.asdict(conditions)
        model |= {"num_classes": None, "tokens": tokens, "captions": kept}
        captions.tokenizer.write(folder.tokenizer)
    write_text(folder.model, json.dumps(model))
    # Last, because its presence is what makes the folder a run.
    write_text(folder.config, to_json(config))


def _found(folder: RunFolder, config: Config, *, overwrite: bool) -> bool:
    """Whether the folder holds this run, to go on with; False if it is to be made.

    Raises:
        ValueError: If it holds a run with another config, or things that are no run.
    """
    path = folder.path
    if not path.exists() or (path / _REPLACED).exists():
        return False
    # A process that was killed between its files leaves the first of them.
    if path.is_dir() and {file.name for file in path.iterdir() if not is_left(file)} <= _FIRST:
        return False
    try:
        found = read_config(path)
    except ValueError as error:
        raise ValueError(
            f"run folder {path} must be new, empty or a run, got something else in it ({error})"
        ) from error
    if overwrite:
        return False
    _require_same(folder, config, found)
    return True


def _clear(folder: RunFolder) -> None:
    """Remove a run, but not the folder, whose lock is held.

    From its first step on the folder holds no run but what is left of one: killed, the next
    command goes on with the removal.
    """
    path, replaced = folder.path, folder.path / _REPLACED
    require_unlocked(path)
    if folder.config.exists():
        folder.config.replace(replaced)
    for each in sorted(path.iterdir()):
        if each == replaced or is_lock(each):
            continue
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()
    replaced.unlink(missing_ok=True)


def _require_same(folder: RunFolder, config: Config, found: Config) -> None:
    wanted, has = (
        json.loads(to_json(dataclasses.replace(each, mesh=MeshConfig())))
        for each in (as_read(config), found)
    )
    differing = differences(wanted, has)
    if differing:
        raise ValueError(
            f"run folder {folder.path} must be new or hold this config, got another "
            f"{', '.join(differing[:4])}{', ...' if differing[4:] else ''} "
            f"(--run names another folder, --overwrite replaces it)"
        )


def check_texts(config: Config) -> None:
    """Refuse texts and paths in a config that no file takes, before the training.

    Raises:
        ValueError: If a field holds text that is not UTF-8, with the name of the field.
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


def rule_of(folder: RunFolder) -> int:
    """The version of the rule that splits captions into words: that of a run which is resumed."""
    return read_word_tokenizer(folder.tokenizer).rule if folder.tokenizer.is_file() else RULE


def _require_same_words(folder: RunFolder, captions: Captions | None) -> None:
    """The numbers of words that the weights know must be those of the data."""
    if captions is not None:
        same = read_word_tokenizer(folder.tokenizer).to_json() == captions.tokenizer.to_json()
        rule = "be of the words of the data's captions (--overwrite replaces the run)"
        require(same, f"{folder.tokenizer}", rule, "others: the captions have changed")


def differences(wanted: Any, found: Any, name: str = "") -> list[str]:
    """The fields, dotted, in which two JSON values differ."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        keys = list(wanted) + [key for key in found if key not in wanted]
        parts = (
            differences(wanted.get(key), found.get(key), f"{name}.{key}" if name else key)
            for key in keys
        )
        return [field for part in parts for field in part]
    return [] if wanted == found else [name]
