"""Tests of loading and saving weights: sharding, exact round trips and invalid files."""

import json
import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fmjax.pretrained.components import load_component
from fmjax.pretrained.files import TensorFiles, find_files
from fmjax.pretrained.folder import open_model, save_component, save_model
from fmjax.pretrained.weights import WeightsMismatch
from fmjax.sharding import MeshConfig, make_mesh
from tests.golden_models import GOLDEN, PIPELINES, TRANSFORMERS, loaded

TINY = "sd35-medium-tiny"
FILE = "diffusion_pytorch_model.safetensors"
ONE_DEVICE = make_mesh(devices=jax.devices()[:1])


@pytest.fixture
def folder(tmp_path):
    """Return a copy of a tiny transformer that a test may modify."""
    return shutil.copytree(GOLDEN / TINY, tmp_path / "transformer")


def tensors(folder):
    return load_file(folder / FILE)


def split_into_shards(folder, num):
    """Replace the weights file by shards with an index, as in large models."""
    arrays = tensors(folder)
    weight_map = {}
    for shard in range(num):
        name = f"diffusion_pytorch_model-{shard + 1:05}-of-{num:05}.safetensors"
        shard_tensors = dict(list(arrays.items())[shard::num])
        save_file(shard_tensors, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(shard_tensors, name)
    (folder / FILE).unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{FILE}.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_sharded_weights_match_one_device(sizes):
    _, expected = loaded(TINY)
    _, sharded = load_component(GOLDEN / TINY, mesh=make_mesh(MeshConfig(*sizes)))
    jax.tree.map(np.testing.assert_array_equal, sharded, expected)
    kernel = sharded["blocks_0"]["image"]["mlp_in"]["kernel"]
    num_shards = sizes[1] * sizes[2]
    assert kernel.addressable_shards[0].data.size * num_shards == kernel.size


def test_each_read_is_at_most_the_shard_of_one_device(monkeypatch):
    reads = []
    read = TensorFiles.read

    def recorded_read(self, name, index=()):
        array = read(self, name, index)
        reads.append((name, array.size / np.prod(self.shapes[name])))
        return array

    monkeypatch.setattr(TensorFiles, "read", recorded_read)
    load_component(GOLDEN / TINY, mesh=make_mesh(MeshConfig(1, 8, 1)))
    fractions = [fraction for name, fraction in reads if name.endswith("ff.net.0.proj.weight")]
    assert fractions
    assert max(fractions) == 1 / 8


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float32"])
def test_weights_are_loaded_in_the_requested_dtype(dtype):
    params = loaded(TINY, dtype=dtype).params
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(params)}
    assert dtypes == {jnp.dtype(dtype or "float32")}
    name = "transformer_blocks.1.ff.net.2.weight"
    expected = tensors(GOLDEN / TINY)[name].T.astype(jnp.dtype(dtype or "float32"))
    np.testing.assert_array_equal(params["blocks_0"]["image"]["mlp_out"]["kernel"][1], expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_round_trip_keeps_the_bytes(name, dtype, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(GOLDEN / name, source)
    arrays = {key: array.astype(dtype) for key, array in tensors(source).items()}
    save_file(arrays, source / FILE, {"format": "pt"})
    component = load_component(source, mesh=make_mesh(MeshConfig(1, 4, 2)))
    save_component(source, tmp_path / "out", component)
    assert (tmp_path / "out" / FILE).read_bytes() == (source / FILE).read_bytes()
    assert (tmp_path / "out" / "config.json").read_bytes() == (source / "config.json").read_bytes()


@pytest.mark.slow
def test_round_trip_keeps_the_shards(folder, tmp_path):
    split_into_shards(folder, 3)
    save_component(folder, tmp_path / "out", load_component(folder, mesh=ONE_DEVICE))
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(
        file.name for file in folder.iterdir()
    )
    for file in folder.glob("*.safetensors"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_round_trip_keeps_mixed_dtypes(folder, tmp_path):
    mixed = tensors(folder)
    mixed = {
        name: array.astype(np.float16) if "norm" in name else array for name, array in mixed.items()
    }
    save_file(mixed, folder / FILE, {"format": "pt"})
    save_component(folder, tmp_path / "out", load_component(folder, mesh=ONE_DEVICE))
    assert (tmp_path / "out" / FILE).read_bytes() == (folder / FILE).read_bytes()


def test_symlinked_folders_in_a_model_are_copied(tmp_path):
    shutil.copytree(GOLDEN / PIPELINES[0], tmp_path / "model")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "notes.txt").write_text("x")
    (tmp_path / "model" / "tokenizer" / "linked").symlink_to(tmp_path / "linked")
    save_model(open_model(tmp_path / "model"), tmp_path / "out", {})
    assert (tmp_path / "out" / "tokenizer" / "linked" / "notes.txt").read_text() == "x"


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_round_trip_keeps_all_files_of_a_pipeline(name, tmp_path):
    model = open_model(GOLDEN / name)
    parts = ("transformer", "vae", *model.encoders)
    save_model(model, tmp_path / "out", {part: model.load(part, mesh=ONE_DEVICE) for part in parts})
    files = [file.relative_to(model.root) for file in model.root.rglob("*") if file.is_file()]
    assert len(files) > 15
    for file in files:
        assert (tmp_path / "out" / file).read_bytes() == (model.root / file).read_bytes(), file
    with pytest.raises(ValueError, match="must be new or empty"):
        save_model(model, tmp_path / "out", {})
    with pytest.raises(ValueError, match="folder must be outside"):
        save_model(model, model.root, {})


def test_saving_does_not_copy_other_weights_files(tmp_path):
    """A copied file of another precision would hold outdated weights."""
    source = shutil.copytree(GOLDEN / PIPELINES[0], tmp_path / "source")
    for name in (
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "merged.safetensors",
        ".cache/blob",
        "transformer/old.bin",
    ):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"old")
    model = open_model(source)
    save_model(model, tmp_path / "out", {"transformer": model.load("transformer", mesh=ONE_DEVICE)})
    written = {
        file.relative_to(tmp_path / "out").as_posix()
        for file in (tmp_path / "out").rglob("*")
        if file.is_file()
    }
    assert "model_index.json" in written
    assert f"transformer/{FILE}" in written
    assert "vae/diffusion_pytorch_model.safetensors" in written
    assert not [name for name in written if "fp16" in name or "merged" in name or "old" in name]
    assert not [name for name in written if name.startswith(".")]
    with pytest.raises(ValueError, match="folder must be outside"):
        save_model(model, source / "inside", {})


def test_overwriting_removes_weights_files_with_precedence(tmp_path):
    """Readers prefer an index of shards to a single weights file."""
    model, out = open_model(GOLDEN / PIPELINES[0]), tmp_path / "out"
    save_model(model, out, {})
    for part in ("transformer", "vae"):
        (out / part / f"{FILE}.index.json").write_text("{}")
    (out / "transformer" / "model.fp16.safetensors").write_bytes(b"x")
    user_files = [
        out / "transformer" / name
        for name in ("mine.safetensors", "model_best.safetensors", "model.ckpt")
    ]
    for file in user_files:
        file.write_bytes(b"x")
    parts = {"transformer": model.load("transformer", mesh=ONE_DEVICE)}
    with pytest.raises(ValueError, match="must be new or empty"):
        save_model(model, out, parts)
    save_model(model, out, parts, overwrite=True)
    for part in ("transformer", "vae"):
        assert find_files(out / part) == (out / part / FILE,)
    assert not (out / "transformer" / "model.fp16.safetensors").exists()
    assert all(file.read_bytes() == b"x" for file in user_files)
    assert open_model(out).parts == model.parts


def test_round_trip_keeps_buffers_and_tied_tensors(tmp_path):
    clip = shutil.copytree(GOLDEN / "sd3-pipeline-tiny/text_encoder", tmp_path / "clip")
    t5 = shutil.copytree(GOLDEN / "sd3-pipeline-tiny/text_encoder_3", tmp_path / "t5")
    arrays = load_file(clip / "model.safetensors")
    arrays["text_model.embeddings.position_ids"] = np.arange(77)[None]
    save_file(arrays, clip / "model.safetensors", {"format": "pt"})
    arrays = load_file(t5 / "model.safetensors")
    arrays["encoder.embed_tokens.weight"] = arrays["shared.weight"].copy()
    save_file(arrays, t5 / "model.safetensors", {"format": "pt"})
    for folder in (clip, t5):
        save_component(folder, tmp_path / "out", load_component(folder, mesh=ONE_DEVICE))
        written = (tmp_path / "out" / "model.safetensors").read_bytes()
        assert written == (folder / "model.safetensors").read_bytes()


def test_missing_unexpected_and_misshaped_tensors_are_listed(folder):
    arrays = tensors(folder)
    missing = arrays.pop("proj_out.bias")
    arrays["proj_out.extra"] = missing
    arrays["context_embedder.bias"] = np.zeros(3, np.float32)
    save_file(arrays, folder / FILE)
    with pytest.raises(WeightsMismatch) as raised:
        load_component(folder, mesh=ONE_DEVICE)
    error = raised.value
    assert error.missing == ["proj_out.bias"]
    assert error.unexpected == ["proj_out.extra"]
    assert error.misshaped == ["context_embedder.bias: [3], not [32]"]
    for name in ("proj_out.bias", "proj_out.extra", "context_embedder.bias: [3], not [32]"):
        assert name in str(error)


def save_pickle(folder):
    (folder / FILE).unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({}))


def save_pickle_as_safetensors(folder):
    (folder / FILE).write_bytes(pickle.dumps({"a": 1}))


def truncate(folder):
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[: len(content) // 2])


def corrupt_header(folder):
    content = bytearray((folder / FILE).read_bytes())
    content[8:12] = b"????"
    (folder / FILE).write_bytes(bytes(content))


def remove_weights(folder):
    (folder / FILE).unlink()


def remove_config(folder):
    (folder / "config.json").unlink()


def write_invalid_json(folder):
    (folder / "config.json").write_text("{")


def write_unknown_class(folder):
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))


def remove_sizes(folder):
    (folder / "config.json").write_text(json.dumps({"_class_name": "SD3Transformer2DModel"}))


def remove_shard(folder):
    sorted(split_into_shards(folder, 2).glob("*.safetensors"))[0].unlink()


def point_shard_outside(folder):
    split_into_shards(folder, 2)
    index = folder / f"{FILE}.index.json"
    index.write_text(index.read_text().replace("diffusion_pytorch_model-00001", "../secret"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (save_pickle, "got diffusion_pytorch_model.bin: a pickle, which can run arbitrary code"),
        (save_pickle_as_safetensors, "must be a complete safetensors file, got"),
        (truncate, "must be a complete safetensors file, got"),
        (corrupt_header, "must be a complete safetensors file, got"),
        (remove_weights, "must hold diffusion_pytorch_model.safetensors or model.safetensors"),
        (remove_config, "must hold config.json, got no such file"),
        (write_invalid_json, "config.json must be JSON, got"),
        (
            write_unknown_class,
            "must name one of the classes .*SD3Transformer2DModel.*, got UNet2DCondition",
        ),
        (remove_sizes, "config.json must hold a value at in_channels, got none"),
        (remove_shard, "00001-of-00002.safetensors, which its index names, got no such file"),
        (point_shard_outside, "must map tensors to files in the same folder"),
    ],
)
def test_damaged_and_unsafe_files_are_refused_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message) as raised:
        load_component(folder, mesh=ONE_DEVICE)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_weights_of_another_precision_are_found_if_unique(folder):
    (folder / FILE).rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    assert [file.name for file in find_files(folder)] == [
        "diffusion_pytorch_model.fp16.safetensors"
    ]


def test_fp16_shards_are_found_and_two_precisions_are_refused(folder):
    split_into_shards(folder, 2)
    for file in sorted(folder.glob("*-of-*.safetensors")):
        file.rename(file.with_name(file.name.replace("model-", "model.fp16-")))
    index = folder / f"{FILE}.index.json"
    text = index.read_text().replace("model-", "model.fp16-")
    index.unlink()
    index.with_name(f"{FILE}.index.fp16.json").write_text(text)
    assert len(find_files(folder)) == 2
    load_component(folder, mesh=ONE_DEVICE)
    index.with_name(f"{FILE}.index.bf16.json").write_text(text)
    with pytest.raises(ValueError, match="must hold weights of one precision, got"):
        find_files(folder)
