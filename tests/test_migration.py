"""The table of old and new names in docs/migration.md: the old are gone, the new exist."""

import importlib
import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "migration.md").read_text()
MODULES_TEXT, NAMES_TEXT = TEXT.split("## Names")
MODULES = re.findall(r"^\| `(fmjax\.\w+)` \| (`.*`) \|$", MODULES_TEXT, re.MULTILINE)
NAMES = re.findall(r"^\| `(fmjax\.[\w.]+)` \| `([\w.]+)` \|$", NAMES_TEXT, re.MULTILINE)


def found(name):
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        return None


@pytest.mark.parametrize(("old", "new"), MODULES)
def test_an_old_module_is_gone(old, new):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(old)
    for each in re.findall(r"`([\w.]+)`", new):
        importlib.import_module(each)


@pytest.mark.parametrize(("old", "new"), NAMES)
def test_an_old_name_is_gone_and_the_new_one_exists(old, new):
    assert found(old) is None
    assert found(new) is not None


def test_the_table_was_read():
    assert len(MODULES) >= 8
    assert len(NAMES) >= 60
