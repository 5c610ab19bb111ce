"""One seed of the fuzzer; `python -m tests.fuzz --seed N` runs others."""

import tempfile
from pathlib import Path

import pytest

from tests.fuzz.__main__ import where
from tests.fuzz.families import STRATA, case_number, name_of
from tests.fuzz.fuzzing import fuzz, fuzz_processes
from tests.fuzz.processes import KINDS, kind_of
from tests.fuzz.world import build

SEED = 16


def test_every_seed_has_several_cases_of_every_class():
    names = [name_of(number) for number in range(1000)]
    assert min(names.count(one.name) for one in STRATA) >= 3
    kinds = [kind_of(number) for number in range(100)]
    assert min(kinds.count(kind) for kind, _ in KINDS) >= 3


@pytest.mark.slow
def test_a_seed_gives_the_same_cases_again():
    world = build(where())
    for number in range(200):
        shown = set()
        for _ in range(2):
            with tempfile.TemporaryDirectory() as folder:
                name, case = case_number(1, number, world, Path(folder))
                shown.add(f"{name}: {case}".replace(folder, ""))
        assert len(shown) == 1, shown


@pytest.mark.slow
def test_no_case_in_process_is_wrong():
    assert fuzz(SEED, range(1000), where(), only="", say=lambda line: None) == []


@pytest.mark.slow
def test_no_process_is_wrong():
    assert fuzz_processes(SEED, range(100), where(), only="", say=lambda line: None) == []
