"""The folder of a run, made before its training or found to be this very run."""

import dataclasses
import json
import shutil
from typing import Any

from fmjax._arrays import Conditions, TextShape, TokenShape
from fmjax._checks import require, require_unicode
from fmjax.config import Config, to_json
from fmjax.data import Captions, read_word_tokenizer
from fmjax.data.tokenizer import RULE
from fmjax.studies.run_folder import RunFolder, as_read, read_config, some_texts, write_text
from fmjax.training import MeshConfig

_CAPTIONS_KEPT = 64
_FIRST = {"model.json", "tokenizer.json"}


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
    path = folder.path
    # Left by a start that was killed between the files it writes.
    unborn = path.is_dir() and {file.name for file in path.iterdir()} <= _FIRST
    if not unborn and path.exists():
        try:
            found = read_config(path)
        except ValueError as error:
            raise ValueError(
                f"run folder {path} must be new, empty or a run, got something else in it ({error})"
            ) from error
        if overwrite:
            shutil.rmtree(path)
        else:
            _require_same(folder, config, found)
            _require_same_words(folder, captions)
            return
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
