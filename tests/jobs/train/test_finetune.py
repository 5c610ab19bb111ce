"""Tests of fine-tuning released models on the command line and exporting the result."""

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
from fmjax.training import Checkpoints, abstract_state, restore_ema
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
SHORT_TRAINING = [
    "--training.batch-size",
    "8",
    "--training.num-steps",
    "2",
    "--training.checkpoint-every",
    "1",
    "--optimizer.warmup-steps",
    "1",
]


def write_config(config_name, folder, event=EVENT, text=TEXT):
    """Write a config file and random latents and text for it."""
    rng = np.random.default_rng(0)
    shapes = {"x": event, "text": (text.num_tokens, text.width), "pooled": (text.pooled_width,)}
    for name, shape in shapes.items():
        numbers = rng.standard_normal((16, *shape), np.float32)
        np.save(folder / f"train_{name}.npy", numbers)
    sizes = f"{text.num_tokens}, {text.width}, {text.pooled_width}"
    config = CONFIG.format(
        path=str(CONFIGS / config_name), folder=str(folder), event=event, text=sizes
    )
    (folder / config_name).write_text(config)
    return folder / config_name


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return write_config("finetune_flux.py", tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    return write_config("finetune_sd3.py", tmp_path_factory.mktemp("sd3"))


def run_command(*arguments):
    """Run a command and return its exit code."""
    with pytest.raises(SystemExit) as exit_info:
        main(list(map(str, arguments)))
    return exit_info.value.code


@pytest.fixture(scope="module")
def adapter_run(flux, tmp_path_factory):
    """A run that trains adapters of the tiny FLUX."""
    run = tmp_path_factory.mktemp("adapters") / "run"
    arguments = ["--pretrained.folder", GOLDEN / "flux-dev-tiny", "--run", run]
    assert run_command("train", flux, *arguments, *SHORT_TRAINING) == 0
    return run


@pytest.fixture(scope="module")
def full_run(sd3, tmp_path_factory):
    """A run that trains all weights of a tiny SD3 transformer, whose files are in bfloat16."""
    source = tmp_path_factory.mktemp("released") / "sd35"
    shutil.copytree(GOLDEN / "sd35-medium-tiny", source)
    tensors = load_file(source / FILE)
    half = {name: np.asarray(jax.numpy.bfloat16(array)) for name, array in tensors.items()}
    save_file(half, source / FILE)
    run = source.parent / "run"
    arguments = ["--pretrained.folder", source, "--run", run]
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch, train)
        assert run_command("train", sd3, *arguments, *SHORT_TRAINING) == 0
    return run, source


def test_adapter_run_keeps_the_sizes_of_the_released_network(adapter_run):
    network = read_config(adapter_run).network
    assert (network.num_double, network.width) == (2, 32)
    assert (network.dtype, network.remat, network.guidance) == ("bfloat16", "full", 1.0)
    lines = (adapter_run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2


def test_adapters_start_from_those_of_another_run(adapter_run, flux, tmp_path, capsys):
    def start(name, *options):
        return run_command("train", flux, "--run", tmp_path / name, *options, *SHORT_TRAINING)

    options = ["--start-from", adapter_run, "--optimizer.learning-rate", "1e-12"]
    assert start("next", "--pretrained.folder", GOLDEN / "flux-dev-tiny", *options) == 0
    config = read_config(adapter_run)
    experiment = build(config, EVENT, TEXT)
    like = abstract_state(experiment.model.net, experiment.optimizer, make_mesh(config.mesh)).params
    old, new = (
        restore_ema(RunFolder(run).checkpoints, like)[0] for run in (adapter_run, tmp_path / "next")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), old, new)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(new)) > 0
    capsys.readouterr()
    assert start("other", "--pretrained.folder", GOLDEN / "flux-schnell-tiny", *options) == 2
    error = capsys.readouterr().err
    assert "start_from must fine-tune the same released model" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("scale", [None, 0.0, 1.0, 3.5])
def test_guidance_scale_is_ignored_without_guidance_input(scale):
    network = released_network(GOLDEN / "flux-schnell-tiny", FluxConfig(guidance=scale))
    assert network.guidance is None


def test_other_scales_are_refused_without_guidance_input():
    message = "network.guidance must be 0, 1 or omitted for the model .*schnell.*, got 2.0"
    with pytest.raises(ValueError, match=message):
        released_network(GOLDEN / "flux-schnell-tiny", FluxConfig(guidance=2.0))
    for scale in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="guidance must be"):
            FluxConfig(guidance=scale)


def test_resumed_run_exports_identical_adapters(adapter_run, flux, tmp_path, capsys):
    """A run resumed from an earlier checkpoint gives the same bits."""
    run = shutil.copytree(adapter_run, tmp_path / "run")
    assert run_command("export", run) == 0
    before = load_file(run / "export" / LORA_FILE)
    shutil.rmtree(run / "checkpoints/2")
    arguments = ["--pretrained.folder", GOLDEN / "flux-dev-tiny", "--run", run]
    assert run_command("train", flux, *arguments, *SHORT_TRAINING) == 0
    assert "resumed from step 1" in capsys.readouterr().out
    assert run_command("export", run, "--overwrite") == 0
    after = load_file(run / "export" / LORA_FILE)
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes(), name


def test_exported_adapters_equal_exported_merged_weights(adapter_run, tmp_path):
    assert run_command("export", adapter_run, "--output", tmp_path / "one.safetensors") == 0
    assert run_command("export", adapter_run, "--merged", "--output", tmp_path / "merged") == 0
    adapters = read_lora(tmp_path / "one.safetensors")
    assert all(adapter.up.any() for adapter in adapters.values())
    added = loaded("flux-dev-tiny", lora=tmp_path / "one.safetensors").params
    merged = loaded(tmp_path / "merged").params
    # The two programs differ by rounding: r products and the weight are summed, r + 1 roundings.
    rank = max(len(adapter.down) for adapter in adapters.values())

    def assert_equal_up_to_rounding(actual, expected):
        atol = 2 * (rank + 1) * np.finfo(np.float32).eps * np.abs(actual).max()
        np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)

    jax.tree.map(assert_equal_up_to_rounding, added, merged)


def test_full_run_is_exported_in_the_dtype_of_the_files(full_run, tmp_path):
    run, source = full_run
    assert run_command("export", run, "--output", tmp_path / "out") == 0
    before, after = load_file(source / FILE), load_file(tmp_path / "out" / FILE)
    assert {name: (a.shape, a.dtype) for name, a in before.items()} == {
        name: (a.shape, a.dtype) for name, a in after.items()
    }
    same = {name for name in before if before[name].tobytes() == after[name].tobytes()}
    assert "pos_embed.pos_embed" in same
    assert len(same) < len(before) / 2
    assert json.loads((tmp_path / "out/config.json").read_text())["num_layers"] == 3


@pytest.mark.parametrize("weights", [True, False])
def test_untrained_weights_are_exported_unchanged(weights, full_run, tmp_path):
    """The initial state of a training is exported before any step.

    Without released weights, only the table of positions is the released one.
    """
    run, source = full_run
    config, mesh = read_config(run), make_mesh(devices=jax.devices()[:1])
    config = replace(config, pretrained=replace(config.pretrained, weights=weights))
    folder, experiment = RunFolder(tmp_path / "run"), build(config, EVENT, TEXT)
    prepare(folder, config, EVENT, TEXT)
    abstract = abstract_state(experiment.model.net, experiment.optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state, _ = initial_state(config, experiment, mesh, shardings, folder.checkpoints, Silent())
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


def test_pipeline_export_copies_the_untrained_parts(tmp_path):
    """The transformer of a pipeline is trained, and the other parts are copied."""
    metadata = json.loads((PIPELINE / "transformer/config.json").read_text())
    text = TextShape(4, metadata["joint_attention_dim"], metadata["pooled_projection_dim"])
    config = write_config("finetune_sd3.py", tmp_path, (8, 8, metadata["in_channels"]), text)
    arguments = ["--pretrained.folder", PIPELINE, "--run", tmp_path / "run"]
    assert run_command("train", config, *SHORT_TRAINING, *arguments) == 0
    output = tmp_path / "pipeline"
    assert run_command("export", tmp_path / "run", "--pipeline", "--output", output) == 0
    for file in PIPELINE.rglob("*"):
        if file.is_file():
            is_copied = (output / file.relative_to(PIPELINE)).read_bytes() == file.read_bytes()
            assert is_copied == (file.name != FILE or file.parent.name != "transformer"), file


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
def test_invalid_training_leaves_no_run_folder(arguments, message, flux, tmp_path, capsys):
    defaults = ["--pretrained.folder", str(GOLDEN / "flux-dev-tiny"), "--run", tmp_path / "run"]
    assert run_command("train", flux, *defaults, *SHORT_TRAINING, *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "run").exists()


def test_data_of_another_model_is_refused(flux, tmp_path, capsys):
    """The data have fewer latent channels than the transformer."""
    released = shutil.copytree(GOLDEN / "flux-dev-tiny", tmp_path / "flux")
    metadata = json.loads((released / "config.json").read_text()) | {"in_channels": 64}
    (released / "config.json").write_text(json.dumps(metadata))
    arguments = ["--pretrained.folder", released, "--run", tmp_path / "run"]
    assert run_command("train", flux, *arguments, *SHORT_TRAINING) == 2
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
def test_invalid_exports_are_refused(arguments, message, adapter_run, capsys):
    assert run_command("export", adapter_run, *arguments) == 2
    assert message in capsys.readouterr().err


def test_export_overwrites_no_files(adapter_run, tmp_path, capsys):
    (tmp_path / LORA_FILE).write_bytes(b"x")
    assert run_command("export", adapter_run, "--output", tmp_path) == 2
    assert "must be new (--overwrite replaces it)" in capsys.readouterr().err
    assert run_command("export", adapter_run, "--merged", "--output", tmp_path) == 2
    assert "must be new or empty" in capsys.readouterr().err


def test_merged_export_of_a_full_run_is_refused(full_run, capsys):
    assert run_command("export", full_run[0], "--merged") == 2
    assert "merged must be left out for a run without adapters" in capsys.readouterr().err


def test_export_of_a_run_without_released_weights_is_refused(adapter_run, tmp_path, capsys):
    run = shutil.copytree(adapter_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text()) | {"pretrained": None}
    (run / "config.json").write_text(json.dumps(config))
    assert run_command("export", run) == 2
    assert "must start from a released network (pretrained.folder)" in capsys.readouterr().err
