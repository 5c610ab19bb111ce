"""Released weights trained on from the command line, exported, and read again."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fmjax._arrays import TextShape
from fmjax._progress import Silent
from fmjax.cli import main
from fmjax.config import build
from fmjax.jobs.released.export import export_run
from fmjax.jobs.train import train
from fmjax.jobs.train.prepare import prepare
from fmjax.networks import FluxConfig
from fmjax.pretrained.lora.files import LORA_FILE, read_lora
from fmjax.pretrained.tuning import released_network
from fmjax.runs.folder import RunFolder, read_config
from fmjax.runs.released_weights import initial_state
from fmjax.sharding import make_mesh
from fmjax.training import Checkpoints, abstract_state
from tests.golden_models import GOLDEN, loaded
from tests.released import EVENT, TEXT, on_one_device

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[3] / "configs"
FILE = "diffusion_pytorch_model.safetensors"
PIPELINE = GOLDEN / "sd3-pipeline-tiny"


CONFIG = """
import dataclasses
import runpy

from fmjax.config import TextShape
from fmjax.data import ArrayData


def get_config():
    config = runpy.run_path({path!r})["get_config"]()
    data = ArrayData({folder!r}, event_shape={event}, text=TextShape({text}))
    return dataclasses.replace(config, data=data)
"""
QUICK = [
    "--training.batch-size",
    "8",
    "--training.num-steps",
    "2",
    "--training.checkpoint-every",
    "1",
    "--optimizer.warmup-steps",
    "1",
]


def with_data(name, folder, event=EVENT, text=TEXT):
    """A config file on latents and text without meaning, which are made."""
    rng = np.random.default_rng(0)
    shapes = {"x": event, "text": (text.num_tokens, text.width), "pooled": (text.pooled_width,)}
    for array, shape in shapes.items():
        numbers = rng.standard_normal((16, *shape), np.float32)
        np.save(folder / f"train_{array}.npy", numbers)
    sizes = f"{text.num_tokens}, {text.width}, {text.pooled_width}"
    config = CONFIG.format(path=str(CONFIGS / name), folder=str(folder), event=event, text=sizes)
    (folder / name).write_text(config)
    return folder / name


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return with_data("finetune_flux.py", tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    return with_data("finetune_sd3.py", tmp_path_factory.mktemp("sd3"))


def fmjax(*arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    return end.value.code


@pytest.fixture(scope="module")
def of_adapters(flux, tmp_path_factory):
    """A run of adapters of the tiny FLUX."""
    run = tmp_path_factory.mktemp("adapters") / "run"
    arguments = ["--pretrained.folder", GOLDEN / "flux-dev-tiny", "--run", run]
    assert fmjax("train", flux, *arguments, *QUICK) == 0
    return run


@pytest.fixture(scope="module")
def of_all(sd3, tmp_path_factory):
    """A run of all weights of the transformer of a tiny SD3, whose files are in bfloat16."""
    source = tmp_path_factory.mktemp("released") / "sd35"
    shutil.copytree(GOLDEN / "sd35-medium-tiny", source)
    tensors = load_file(source / FILE)
    half = {name: np.asarray(jax.numpy.bfloat16(array)) for name, array in tensors.items()}
    save_file(half, source / FILE)
    run = source.parent / "run"
    arguments = ["--pretrained.folder", source, "--run", run]
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch, train)
        assert fmjax("train", sd3, *arguments, *QUICK) == 0
    return run, source


def test_a_run_keeps_the_released_networks_sizes_and_only_adapters(of_adapters):
    network = read_config(of_adapters).network
    assert (network.num_double, network.width) == (2, 32)
    assert (network.dtype, network.remat, network.guidance) == ("bfloat16", "full", 1.0)
    lines = (of_adapters / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2


@pytest.mark.parametrize("scale", [None, 0.0, 1.0, 3.5])
def test_a_released_network_without_guidance_takes_scales_without_effect(scale):
    found = released_network(GOLDEN / "flux-schnell-tiny", FluxConfig(guidance=scale))
    assert found.guidance is None


def test_other_scales_are_refused_for_a_released_network_without_guidance():
    message = "network.guidance must be 0, 1 or omitted for the model .*schnell.*, got 2.0"
    with pytest.raises(ValueError, match=message):
        released_network(GOLDEN / "flux-schnell-tiny", FluxConfig(guidance=2.0))
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="guidance must be"):
            FluxConfig(guidance=wrong)


def test_a_run_goes_on_where_it_stopped(of_adapters, flux, tmp_path, capsys):
    """Without its last checkpoint it ends with the same bits."""
    run = shutil.copytree(of_adapters, tmp_path / "run")
    assert fmjax("export", run) == 0
    before = load_file(run / "export" / LORA_FILE)
    shutil.rmtree(run / "checkpoints/2")
    arguments = ["--pretrained.folder", GOLDEN / "flux-dev-tiny", "--run", run]
    assert fmjax("train", flux, *arguments, *QUICK) == 0
    assert "resumed from step 1" in capsys.readouterr().out
    assert fmjax("export", run, "--overwrite") == 0
    after = load_file(run / "export" / LORA_FILE)
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes(), name


def test_exported_adapters_added_are_the_exported_merged_weights(of_adapters, tmp_path):
    assert fmjax("export", of_adapters, "--output", tmp_path / "one.safetensors") == 0
    assert fmjax("export", of_adapters, "--merged", "--output", tmp_path / "merged") == 0
    found = read_lora(tmp_path / "one.safetensors")
    assert all(adapter.up.any() for adapter in found.values())
    added = loaded("flux-dev-tiny", lora=tmp_path / "one.safetensors").params
    merged = loaded(tmp_path / "merged").params
    # Two programs: each sums the products of rank r and adds the weight, r + 1 roundings at most.
    rank = max(len(adapter.down) for adapter in found.values())

    def assert_equal_but_for_rounding(one, other):
        atol = 2 * (rank + 1) * np.finfo(np.float32).eps * np.abs(one).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)

    jax.tree.map(assert_equal_but_for_rounding, added, merged)


def test_all_weights_are_exported_in_the_type_of_the_files(of_all, tmp_path):
    run, source = of_all
    assert fmjax("export", run, "--output", tmp_path / "out") == 0
    before, after = load_file(source / FILE), load_file(tmp_path / "out" / FILE)
    assert {name: (a.shape, a.dtype) for name, a in before.items()} == {
        name: (a.shape, a.dtype) for name, a in after.items()
    }
    same = {name for name in before if before[name].tobytes() == after[name].tobytes()}
    assert "pos_embed.pos_embed" in same
    assert len(same) < len(before) / 2
    assert json.loads((tmp_path / "out/config.json").read_text())["num_layers"] == 3


@pytest.mark.parametrize("weights", [True, False])
def test_untrained_weights_come_back_byte_for_byte(weights, of_all, tmp_path):
    """The state that a training starts from, exported before any step.

    Of one that starts anew the table of positions is the released one, all else is drawn.
    """
    run, source = of_all
    config, mesh = read_config(run), make_mesh(devices=jax.devices()[:1])
    config = replace(config, pretrained=replace(config.pretrained, weights=weights))
    folder, experiment = RunFolder(tmp_path / "run"), build(config, EVENT, TEXT)
    prepare(folder, config, EVENT, TEXT)
    like = abstract_state(experiment.net, experiment.optimizer, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, like)
    state, _ = initial_state(config, experiment, mesh, places, folder.checkpoints, Silent())
    with Checkpoints(folder.checkpoints) as checkpoints:
        checkpoints.save(state, {})
    export_run(folder.root, tmp_path / "out")
    before, after = load_file(source / FILE), load_file(tmp_path / "out" / FILE)
    assert {name: array.shape for name, array in before.items()} == {
        name: array.shape for name, array in after.items()
    }
    for name, array in before.items():
        same = array.tobytes() == after[name].tobytes()
        assert same or not weights, name
        assert weights or same == (name == "pos_embed.pos_embed" or not array.any()), name


def test_a_whole_pipeline_is_exported(tmp_path):
    """Of a pipeline's folder the transformer is trained; the other parts are copied."""
    metadata = json.loads((PIPELINE / "transformer/config.json").read_text())
    text = TextShape(4, metadata["joint_attention_dim"], metadata["pooled_projection_dim"])
    config = with_data("finetune_sd3.py", tmp_path, (8, 8, metadata["in_channels"]), text)
    arguments = ["--pretrained.folder", PIPELINE, "--run", tmp_path / "run"]
    assert fmjax("train", config, *QUICK, *arguments) == 0
    output = tmp_path / "pipeline"
    assert fmjax("export", tmp_path / "run", "--pipeline", "--output", output) == 0
    for path in PIPELINE.rglob("*"):
        if path.is_file():
            same = (output / path.relative_to(PIPELINE)).read_bytes() == path.read_bytes()
            assert same == (path.name != FILE or path.parent.name != "transformer"), path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pretrained.folder", "nowhere"], "nowhere must hold config.json, got no such file"),
        (["--pretrained.folder", str(PIPELINE / "vae")], "must name the class FluxTransf"),
        (["--pretrained.lora.layers", "attn.to_w"], "lora.layers must name linear layers of this"),
        (["--data.text.width", "31"], "folder .* must hold text of"),
        (["--pretrained.no-weights"], "pretrained.weights must be True for adapters, got False"),
    ],
)
def test_a_training_that_cannot_be_leaves_no_folder(arguments, message, flux, tmp_path, capsys):
    usual = ["--pretrained.folder", str(GOLDEN / "flux-dev-tiny"), "--run", tmp_path / "run"]
    assert fmjax("train", flux, *usual, *QUICK, *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "run").exists()


def test_data_of_another_model_is_refused(flux, tmp_path, capsys):
    """Latents of four channels for a transformer of sixteen, say."""
    released = shutil.copytree(GOLDEN / "flux-dev-tiny", tmp_path / "flux")
    metadata = json.loads((released / "config.json").read_text()) | {"in_channels": 64}
    (released / "config.json").write_text(json.dumps(metadata))
    arguments = ["--pretrained.folder", released, "--run", tmp_path / "run"]
    assert fmjax("train", flux, *arguments, *QUICK) == 2
    assert (
        "data must have latent channels (for FLUX, channels of a patch) equal to 64, like the tr"
        in (capsys.readouterr().err)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pipeline"], "pipeline must be combined with merged for a run of"),
        (["--pipeline", "--merged"], "pretrained.folder must be a pipeline to write a"),
    ],
)
def test_an_export_that_cannot_be_is_refused(arguments, message, of_adapters, capsys):
    assert fmjax("export", of_adapters, *arguments) == 2
    assert message in capsys.readouterr().err


def test_nothing_is_written_over(of_adapters, tmp_path, capsys):
    (tmp_path / LORA_FILE).write_bytes(b"x")
    assert fmjax("export", of_adapters, "--output", tmp_path) == 2
    assert "must be new (--overwrite replaces it)" in capsys.readouterr().err
    assert fmjax("export", of_adapters, "--merged", "--output", tmp_path) == 2
    assert "must be new or empty" in capsys.readouterr().err


def test_a_run_of_all_weights_has_nothing_to_merge(of_all, capsys):
    assert fmjax("export", of_all[0], "--merged") == 2
    assert "merged must be left out for a run without adapters" in capsys.readouterr().err


def test_a_run_of_its_own_is_not_exported(of_adapters, tmp_path, capsys):
    run = shutil.copytree(of_adapters, tmp_path / "run")
    config = json.loads((run / "config.json").read_text()) | {"pretrained": None}
    (run / "config.json").write_text(json.dumps(config))
    assert fmjax("export", run) == 2
    assert "must start from a released network (pretrained.folder)" in capsys.readouterr().err
