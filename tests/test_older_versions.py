"""Tests that files with the field names of older versions are still read."""

import dataclasses
import json

import pytest

from fmjax.config import Config, EvaluationConfig, MeanFlowConfig, ShortcutConfig, TrainingConfig
from fmjax.config.serialize import from_json, to_json
from fmjax.data.records.manifest import RecordField, RecordManifest, prepare_records, read_manifest
from fmjax.jobs.evaluate.straightness import StraightnessResult, read_straightness
from fmjax.runs.folder import RunFolder

CONFIG = Config(name="older")


@pytest.mark.parametrize(
    ("config", "old", "new"),
    [
        ({"loss": MeanFlowConfig(ratio_r_neq_t=0.5)}, "share_apart", "ratio_r_neq_t"),
        ({"loss": ShortcutConfig(bootstrap_ratio=0.5)}, "share_apart", "bootstrap_ratio"),
        ({"training": TrainingConfig(preview_samples=False)}, "draw_samples", "preview_samples"),
        ({"evaluation": EvaluationConfig(num_trajectories=3)}, "num_paths", "num_trajectories"),
    ],
)
def test_old_config_fields_are_read_under_their_new_names(config, old, new):
    config = dataclasses.replace(CONFIG, **config)
    document = to_json(config)
    assert f'"{new}"' in document
    assert from_json(document.replace(f'"{new}"', f'"{old}"')) == config


def test_a_field_is_only_renamed_where_it_had_the_old_name():
    document = json.loads(to_json(CONFIG))
    document["evaluation"]["draw_samples"] = True
    with pytest.raises(ValueError, match="draw_samples"):
        from_json(json.dumps(document))


def test_paths_json_is_read_as_the_straightness(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.straightness == tmp_path / "straightness.json"
    result = StraightnessResult(
        7, 32, 1.0, 0.1, 0.01, 1.1, (0.0, 1.0), (0.1, 0.2), (0.5,), (0.3,), (), 0.7
    )
    document = result._asdict()
    document["num_paths"] = document.pop("num_trajectories")
    (tmp_path / "paths.json").write_text(json.dumps(document))
    assert folder.straightness == tmp_path / "paths.json"
    assert read_straightness(folder.straightness) == result


def test_records_with_the_old_name_of_their_origin_are_read(tmp_path):
    manifest = RecordManifest((RecordField("x1", "float32", (2,)),), 8, 4, {"run": "runs/a"})
    prepare_records(tmp_path, manifest)
    file = tmp_path / "records.json"
    file.write_text(file.read_text().replace('"origin"', '"about"'))
    assert read_manifest(tmp_path) == manifest
    prepare_records(tmp_path, manifest)
