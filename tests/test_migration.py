"""Tests of docs/migration.md: old names are removed and new names exist."""

import importlib
import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "migration.md").read_text()
MODULES_TEXT, NAMES_TEXT = TEXT.split("## Names")
MODULES = re.findall(r"^\| `(fmjax\.\w+)` \| (`.*`) \|$", MODULES_TEXT, re.MULTILINE)
NAMES = re.findall(r"^\| `(fmjax\.[\w.]+)` \| `([\w.]+)` \|$", NAMES_TEXT, re.MULTILINE)


def lookup(name):
    """Return the object of a full name, or None."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        return None


@pytest.mark.parametrize(("old", "new"), MODULES)
def test_old_modules_are_removed_and_new_ones_exist(old, new):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(old)
    for module in re.findall(r"`([\w.]+)`", new):
        importlib.import_module(module)


@pytest.mark.parametrize(("old", "new"), NAMES)
def test_old_names_are_removed_and_new_ones_exist(old, new):
    assert lookup(old) is None
    assert lookup(new) is not None


def test_migration_tables_are_found():
    assert len(MODULES) >= 8
    assert len(NAMES) >= 60
