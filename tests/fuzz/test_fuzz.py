"""Tests of the fuzzer, and one run of it with a fixed seed."""

import tempfile
from pathlib import Path

import pytest

from tests.fuzz.__main__ import fixture_folder
from tests.fuzz.families import FAMILIES, family_name, make_case
from tests.fuzz.fuzzing import fuzz, fuzz_processes
from tests.fuzz.processes import PROCESS_FAMILIES, process_family
from tests.fuzz.world import build

SEED = 16


def test_every_seed_has_several_cases_of_every_family():
    names = [family_name(number) for number in range(1000)]
    assert min(names.count(family.name) for family in FAMILIES) >= 3
    families = [process_family(number) for number in range(100)]
    assert min(families.count(family) for family, _ in PROCESS_FAMILIES) >= 3


@pytest.mark.slow
def test_cases_depend_only_on_the_seed():
    fixtures = build(fixture_folder())
    for number in range(200):
        descriptions = set()
        for _ in range(2):
            with tempfile.TemporaryDirectory() as folder:
                name, case = make_case(1, number, fixtures, Path(folder))
                descriptions.add(f"{name}: {case}".replace(folder, ""))
        assert len(descriptions) == 1, descriptions


@pytest.mark.slow
def test_in_process_cases_have_no_failures():
    assert fuzz(SEED, range(1000), fixture_folder(), only="", log=lambda line: None) == []


@pytest.mark.slow
def test_process_cases_have_no_failures():
    assert fuzz_processes(SEED, range(100), fixture_folder(), only="", log=lambda line: None) == []
