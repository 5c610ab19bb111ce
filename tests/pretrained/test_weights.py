"""Weights from files onto devices and back: bit for bit, strictly, and nothing but tensors."""

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
ONE = make_mesh(devices=jax.devices()[:1])


@pytest.fixture
def folder(tmp_path):
    """A copy of a tiny transformer, to be damaged."""
    return shutil.copytree(GOLDEN / TINY, tmp_path / "transformer")


def tensors(folder):
    return load_file(folder / FILE)


def in_shards(folder, num):
    """The same weights in several files with an index, as large models come."""
    arrays = tensors(folder)
    places = {}
    for shard in range(num):
        name = f"diffusion_pytorch_model-{shard + 1:05}-of-{num:05}.safetensors"
        part = dict(list(arrays.items())[shard::num])
        save_file(part, folder / name, {"format": "pt"})
        places |= dict.fromkeys(part, name)
    (folder / FILE).unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{FILE}.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_eight_devices_hold_the_weights_of_one(sizes):
    _, whole = loaded(TINY)
    _, split = load_component(GOLDEN / TINY, mesh=make_mesh(MeshConfig(*sizes)))
    jax.tree.map(np.testing.assert_array_equal, split, whole)
    kernel = split["blocks_0"]["image"]["mlp_in"]["kernel"]
    shares = sizes[1] * sizes[2]
    assert kernel.addressable_shards[0].data.size * shares == kernel.size


def test_no_more_is_read_at_once_than_one_device_holds(monkeypatch):
    sizes = []
    read = TensorFiles.read

    def counted(self, name, index=()):
        part = read(self, name, index)
        sizes.append((name, part.size / np.prod(self.shapes[name])))
        return part

    monkeypatch.setattr(TensorFiles, "read", counted)
    load_component(GOLDEN / TINY, mesh=make_mesh(MeshConfig(1, 8, 1)))
    shares = [share for name, share in sizes if name.endswith("ff.net.0.proj.weight")]
    assert shares
    assert max(shares) == 1 / 8


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float32"])
def test_the_type_is_chosen_when_weights_are_read(dtype):
    params = loaded(TINY, dtype=dtype).params
    kinds = {leaf.dtype for leaf in jax.tree.leaves(params)}
    assert kinds == {jnp.dtype(dtype or "float32")}
    name = "transformer_blocks.1.ff.net.2.weight"
    expected = tensors(GOLDEN / TINY)[name].T.astype(jnp.dtype(dtype or "float32"))
    np.testing.assert_array_equal(params["blocks_0"]["image"]["mlp_out"]["kernel"][1], expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_round_trip_gives_the_same_bytes(name, kind, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(GOLDEN / name, source)
    given = {key: array.astype(kind) for key, array in tensors(source).items()}
    save_file(given, source / FILE, {"format": "pt"})
    part = load_component(source, mesh=make_mesh(MeshConfig(1, 4, 2)))
    save_component(source, tmp_path / "out", part)
    assert (tmp_path / "out" / FILE).read_bytes() == (source / FILE).read_bytes()
    assert (tmp_path / "out" / "config.json").read_bytes() == (source / "config.json").read_bytes()


@pytest.mark.slow
def test_a_round_trip_of_shards_keeps_them_apart(folder, tmp_path):
    in_shards(folder, 3)
    save_component(folder, tmp_path / "out", load_component(folder, mesh=ONE))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in folder.iterdir()
    )
    for path in folder.glob("*.safetensors"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_types_that_are_mixed_are_written_as_they_were(folder, tmp_path):
    mixed = tensors(folder)
    mixed = {
        name: array.astype(np.float16) if "norm" in name else array for name, array in mixed.items()
    }
    save_file(mixed, folder / FILE, {"format": "pt"})
    save_component(folder, tmp_path / "out", load_component(folder, mesh=ONE))
    assert (tmp_path / "out" / FILE).read_bytes() == (folder / FILE).read_bytes()


def test_linked_folders_within_a_model_are_copied(tmp_path):
    shutil.copytree(GOLDEN / PIPELINES[0], tmp_path / "model")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "notes.txt").write_text("x")
    (tmp_path / "model" / "tokenizer" / "more").symlink_to(tmp_path / "more")
    save_model(open_model(tmp_path / "model"), tmp_path / "out", {})
    assert (tmp_path / "out" / "tokenizer" / "more" / "notes.txt").read_text() == "x"


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_a_whole_model_is_written_back(name, tmp_path):
    model = open_model(GOLDEN / name)
    parts = ("transformer", "vae", *model.encoders)
    save_model(model, tmp_path / "out", {part: model.load(part, mesh=ONE) for part in parts})
    files = [path.relative_to(model.root) for path in model.root.rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        assert (tmp_path / "out" / path).read_bytes() == (model.root / path).read_bytes(), path
    with pytest.raises(ValueError, match="must be new or empty"):
        save_model(model, tmp_path / "out", {})
    with pytest.raises(ValueError, match="must be outside of the source folder"):
        save_model(model, model.root, {})


def test_no_other_weights_are_written_beside_the_new_ones(tmp_path):
    """Of another precision they would be the old ones, and be loaded without a word."""
    source = shutil.copytree(GOLDEN / PIPELINES[0], tmp_path / "source")
    for name in (
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "whole.safetensors",
        ".cache/blob",
        "transformer/old.bin",
    ):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"old")
    model = open_model(source)
    save_model(model, tmp_path / "out", {"transformer": model.load("transformer", mesh=ONE)})
    written = {
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert "model_index.json" in written
    assert f"transformer/{FILE}" in written
    assert "vae/diffusion_pytorch_model.safetensors" in written
    assert not [name for name in written if "fp16" in name or "whole" in name or "old" in name]
    assert not [name for name in written if name.startswith(".")]
    with pytest.raises(ValueError, match="must be outside of the source folder"):
        save_model(model, source / "inside", {})


def test_what_is_written_over_leaves_no_weights_that_would_be_read_in_its_place(tmp_path):
    """An index of shards, which readers look for first."""
    model, out = open_model(GOLDEN / PIPELINES[0]), tmp_path / "out"
    save_model(model, out, {})
    for part, other in (("transformer", f"{FILE}.index.json"), ("vae", f"{FILE}.index.json")):
        (out / part / other).write_text("{}")
    (out / "transformer" / "model.fp16.safetensors").write_bytes(b"x")
    mine = [
        out / "transformer" / name
        for name in ("mine.safetensors", "model_best.safetensors", "model.ckpt")
    ]
    for path in mine:
        path.write_bytes(b"x")
    parts = {"transformer": model.load("transformer", mesh=ONE)}
    with pytest.raises(ValueError, match="must be new or empty"):
        save_model(model, out, parts)
    save_model(model, out, parts, overwrite=True)
    for part in ("transformer", "vae"):
        assert find_files(out / part) == (out / part / FILE,)
    assert not (out / "transformer" / "model.fp16.safetensors").exists()
    assert all(path.read_bytes() == b"x" for path in mine)
    assert open_model(out).parts == model.parts


def test_buffers_and_tied_copies_of_older_files_are_kept(tmp_path):
    clip = shutil.copytree(GOLDEN / "sd3-pipeline-tiny/text_encoder", tmp_path / "clip")
    t5 = shutil.copytree(GOLDEN / "sd3-pipeline-tiny/text_encoder_3", tmp_path / "t5")
    arrays = load_file(clip / "model.safetensors")
    arrays["text_model.embeddings.position_ids"] = np.arange(77)[None]
    save_file(arrays, clip / "model.safetensors", {"format": "pt"})
    arrays = load_file(t5 / "model.safetensors")
    arrays["encoder.embed_tokens.weight"] = arrays["shared.weight"].copy()
    save_file(arrays, t5 / "model.safetensors", {"format": "pt"})
    for folder in (clip, t5):
        save_component(folder, tmp_path / "out", load_component(folder, mesh=ONE))
        written = (tmp_path / "out" / "model.safetensors").read_bytes()
        assert written == (folder / "model.safetensors").read_bytes()


def test_missing_unexpected_and_misshaped_tensors_are_all_listed(folder):
    arrays = tensors(folder)
    missing = arrays.pop("proj_out.bias")
    arrays["proj_out.more"] = missing
    arrays["context_embedder.bias"] = np.zeros(3, np.float32)
    save_file(arrays, folder / FILE)
    with pytest.raises(WeightsMismatch) as refused:
        load_component(folder, mesh=ONE)
    error = refused.value
    assert error.missing == ["proj_out.bias"]
    assert error.unexpected == ["proj_out.more"]
    assert error.misshaped == ["context_embedder.bias: [3], not [32]"]
    for name in ("proj_out.bias", "proj_out.more", "context_embedder.bias: [3], not [32]"):
        assert name in str(error)


def pickled(folder):
    (folder / FILE).unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({}))


def pickled_under_another_name(folder):
    (folder / FILE).write_bytes(pickle.dumps({"a": 1}))


def cut(folder):
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[: len(content) // 2])


def broken_header(folder):
    content = bytearray((folder / FILE).read_bytes())
    content[8:12] = b"????"
    (folder / FILE).write_bytes(bytes(content))


def no_weights(folder):
    (folder / FILE).unlink()


def no_config(folder):
    (folder / "config.json").unlink()


def no_json(folder):
    (folder / "config.json").write_text("{")


def other_class(folder):
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))


def no_sizes(folder):
    (folder / "config.json").write_text(json.dumps({"_class_name": "SD3Transformer2DModel"}))


def lost_shard(folder):
    sorted(in_shards(folder, 2).glob("*.safetensors"))[0].unlink()


def shard_outside(folder):
    in_shards(folder, 2)
    index = folder / f"{FILE}.index.json"
    index.write_text(index.read_text().replace("diffusion_pytorch_model-00001", "../secret"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pickled, "got diffusion_pytorch_model.bin: a pickle, which can run arbitrary code"),
        (pickled_under_another_name, "must be a complete safetensors file, got"),
        (cut, "must be a complete safetensors file, got"),
        (broken_header, "must be a complete safetensors file, got"),
        (no_weights, "must hold diffusion_pytorch_model.safetensors or model.safetensors"),
        (no_config, "must hold config.json, got no such file"),
        (no_json, "config.json must be JSON, got"),
        (
            other_class,
            "must name one of the classes .*SD3Transformer2DModel.*, got UNet2DCondition",
        ),
        (no_sizes, "config.json must hold a value at in_channels, got none"),
        (lost_shard, "00001-of-00002.safetensors, which its index names, got no such file"),
        (shard_outside, "must map tensors to files in the same folder"),
    ],
)
def test_what_is_damaged_or_unsafe_is_refused_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message) as refused:
        load_component(folder, mesh=ONE)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_another_precision_is_found_where_it_is_the_only_one(folder):
    (folder / FILE).rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    assert [path.name for path in find_files(folder)] == [
        "diffusion_pytorch_model.fp16.safetensors"
    ]


def test_shards_of_another_precision_are_found_and_two_precisions_are_not_chosen_between(folder):
    in_shards(folder, 2)
    for path in sorted(folder.glob("*-of-*.safetensors")):
        path.rename(path.with_name(path.name.replace("model-", "model.fp16-")))
    index = folder / f"{FILE}.index.json"
    text = index.read_text().replace("model-", "model.fp16-")
    index.unlink()
    index.with_name(f"{FILE}.index.fp16.json").write_text(text)
    assert len(find_files(folder)) == 2
    load_component(folder, mesh=ONE)
    index.with_name(f"{FILE}.index.bf16.json").write_text(text)
    with pytest.raises(ValueError, match="must hold weights of one precision, got"):
        find_files(folder)
