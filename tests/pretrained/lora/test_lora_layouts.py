"""Tests of LoRA files in the tensor layouts of all common trainers."""

import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fmjax.pretrained.components import check_component, load_component
from fmjax.pretrained.files import TensorFiles
from fmjax.pretrained.lora.files import LORA_FILE, merge_lora, read_lora
from fmjax.pretrained.weights import write_tensors
from fmjax.sharding import make_mesh
from tests.golden_models import GOLDEN, loaded

WEIGHTS = "diffusion_pytorch_model.safetensors"

# Names of layers in the original releases, mapped to names in diffusers. Several names in diffusers
# are in the order of their rows.
QKV = "attn.to_q attn.to_k attn.to_v"
ADDED = "attn.add_q_proj attn.add_k_proj attn.add_v_proj"
DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "img_attn.qkv": QKV,
    "img_attn.proj": "attn.to_out.0",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mod.lin": "norm1_context.linear",
    "txt_attn.qkv": ADDED,
    "txt_attn.proj": "attn.to_add_out",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
SINGLE = {"modulation.lin": "norm.linear", "linear1": f"{QKV} proj_mlp", "linear2": "proj_out"}
JOINT = {
    "x_block.adaLN_modulation.1": "norm1.linear",
    "x_block.attn.qkv": QKV,
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "context_block.adaLN_modulation.1": "norm1_context.linear",
    "context_block.attn.qkv": ADDED,
    "x_block.attn2.qkv": QKV.replace("attn", "attn2"),
    "x_block.attn2.proj": "attn2.to_out.0",
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
}
TIME, POOLED = "time_text_embed.timestep_embedder", "time_text_embed.text_embedder"
GUIDANCE = "time_text_embed.guidance_embedder"
OUTPUT_LAYERS = {
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}
MODELS = {
    "flux-dev-tiny": OUTPUT_LAYERS
    | {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": f"{TIME}.linear_1",
        "time_in.out_layer": f"{TIME}.linear_2",
        "vector_in.in_layer": f"{POOLED}.linear_1",
        "vector_in.out_layer": f"{POOLED}.linear_2",
        "guidance_in.in_layer": f"{GUIDANCE}.linear_1",
        "guidance_in.out_layer": f"{GUIDANCE}.linear_2",
    },
    "sd35-medium-tiny": OUTPUT_LAYERS
    | {
        "context_embedder": "context_embedder",
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": f"{TIME}.linear_1",
        "t_embedder.mlp.2": f"{TIME}.linear_2",
        "y_embedder.mlp.0": f"{POOLED}.linear_1",
        "y_embedder.mlp.2": f"{POOLED}.linear_2",
    },
}


def block_layers(released, diffusers, layers, i):
    """Map the layer names of block `i` in the release to the names in diffusers."""
    return {
        f"{released}.{i}.{name}": " ".join(f"{diffusers}.{i}.{part}" for part in parts.split())
        for name, parts in layers.items()
    }


for i in range(2):
    MODELS["flux-dev-tiny"] |= block_layers("double_blocks", "transformer_blocks", DOUBLE, i)
    MODELS["flux-dev-tiny"] |= block_layers("single_blocks", "single_transformer_blocks", SINGLE, i)
for i in range(3):
    MODELS["sd35-medium-tiny"] |= block_layers("joint_blocks", "transformer_blocks", JOINT, i)


def base_weights(model):
    return load_file(GOLDEN / model / WEIGHTS)


def make_adapters(model):
    """Return A and B of ranks 1 to 3 for every layer, by its name in the release."""
    weights, rng, adapters = base_weights(model), np.random.default_rng(0), {}
    for i, (name, part_names) in enumerate(MODELS[model].items()):
        parts = [weights.get(f"{part}.weight") for part in part_names.split()]
        if any(part is None for part in parts):  # missing in the last block of SD3
            continue
        rank, rows = 1 + i % 3, sum(map(len, parts))
        down = rng.standard_normal((rank, *parts[0].shape[1:]), np.float32)
        kernel = (1, 1) if down.ndim == 4 else ()
        adapters[name] = down, rng.standard_normal((rows, rank, *kernel), np.float32)
    return adapters


def swap_shift_and_scale(name, array):
    """Reorder the final modulation: releases store shift before scale, diffusers after it."""
    is_shift_and_scale = "adaLN" in name and len(array) == 64
    return np.concatenate([array[32:], array[:32]]) if is_shift_and_scale else array


def expected_updates(model, adapters, scale):
    """Return the term that is added to each weight of diffusers."""
    weights, updates = base_weights(model), {}
    for name, (down, up) in adapters.items():
        product = up.reshape(len(up), -1).astype(float) @ down.reshape(len(down), -1)
        product = swap_shift_and_scale(name, scale(len(down)) * product)
        start = 0
        for part in MODELS[model][name].split():
            weight = weights[f"{part}.weight"]
            updates[part] = product[start : start + len(weight)].reshape(weight.shape)
            start += len(weight)
        assert start == len(product)
    return updates


def split_by_diffusers_layer(model, adapters):
    """Yield the same adapters with one adapter per layer of diffusers."""
    weights = base_weights(model)
    for name, (down, up) in adapters.items():
        up, start = swap_shift_and_scale(name, up), 0
        for part in MODELS[model][name].split():
            rows = len(weights[f"{part}.weight"])
            yield part, (down, up[start : start + rows])
            start += rows


def release_layout(prefix, down="lora_A.weight", up="lora_B.weight", alpha=False, rename=str):
    def layout(model, adapters):
        return to_tensors(adapters.items(), prefix, down, up, alpha, rename)

    return layout


def diffusers_layout(prefix, down="lora_A.weight", up="lora_B.weight", alpha=False, rename=str):
    def layout(model, adapters):
        return to_tensors(
            split_by_diffusers_layer(model, adapters), prefix, down, up, alpha, rename
        )

    return layout


def to_tensors(adapters, prefix, down, up, alpha, rename):
    tensors = {}
    for name, (a, b) in adapters:
        layer = prefix + rename(name)
        tensors |= {f"{layer}.{down}": a, f"{layer}.{up}": np.ascontiguousarray(b)}
        if alpha:
            tensors[f"{layer}.alpha"] = np.array(1.5, np.float32)
    return tensors


def with_underscores(name):
    return name.replace(".", "_")


OLD_SUFFIXES = {"down": "lora_down.weight", "up": "lora_up.weight"}
KOHYA = OLD_SUFFIXES | {"alpha": True, "rename": with_underscores}
LAYOUTS = {
    "ComfyUI": release_layout("diffusion_model."),
    "ComfyUI, kohya's suffixes": release_layout("diffusion_model.", **OLD_SUFFIXES, alpha=True),
    "no prefix": release_layout(""),
    "no prefix, kohya's suffixes": release_layout("", **OLD_SUFFIXES, alpha=True),
    "transformer": release_layout("transformer.", **OLD_SUFFIXES, alpha=True),
    "checkpoint": release_layout("model.diffusion_model."),
    "PEFT of the release": release_layout("base_model.model."),
    "kohya": release_layout("lora_unet_", **KOHYA),
    "diffusers": diffusers_layout("transformer."),
    "diffusers, no prefix": diffusers_layout("", **OLD_SUFFIXES),
    "diffusers, old": diffusers_layout("transformer.", "lora.down.weight", "lora.up.weight"),
    "PEFT": diffusers_layout("base_model.model.", "lora_A.default.weight", "lora_B.default.weight"),
    "ComfyUI of diffusers": diffusers_layout("diffusion_model.", alpha=True),
    "kohya of diffusers": diffusers_layout("lora_unet_", **KOHYA),
    "OneTrainer": diffusers_layout("lora_transformer_", **KOHYA),
    "LyCORIS": diffusers_layout("lycoris_", **KOHYA),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_give_the_same_updates(layout, model, tmp_path):
    adapters = make_adapters(model)
    tensors = LAYOUTS[layout](model, adapters)
    save_file(tensors, tmp_path / LORA_FILE)
    has_alpha = any(name.endswith(".alpha") for name in tensors)
    updates = expected_updates(model, adapters, lambda rank: 1.5 / rank if has_alpha else 1.0)
    restored = read_lora(tmp_path)
    assert restored.keys() == updates.keys()
    for name, adapter in restored.items():
        update = adapter.part(slice(None), slice(None)).reshape(adapter.shape)
        np.testing.assert_allclose(update, updates[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("model", MODELS)
def test_merged_tensors_are_weights_plus_updates(model, tmp_path):
    adapters, weights = make_adapters(model), base_weights(model)
    save_file(LAYOUTS["ComfyUI"](model, adapters), tmp_path / LORA_FILE)
    updates = expected_updates(model, adapters, lambda rank: 0.5)
    with TensorFiles([GOLDEN / model / WEIGHTS]) as files:
        merged = merge_lora(files, tmp_path, 0.5)
        for name, weight in weights.items():
            expected = weight + updates.get(name.removesuffix(".weight"), 0.0)
            np.testing.assert_allclose(
                merged.read(name), expected, rtol=1e-5, atol=1e-5, err_msg=name
            )


def test_loaded_params_match_a_folder_of_merged_weights(tmp_path):
    model = "sd35-medium-tiny"
    adapters, merged = make_adapters(model), base_weights(model)
    save_file(LAYOUTS["kohya"](model, adapters), tmp_path / LORA_FILE)
    for name, update in expected_updates(model, adapters, lambda rank: 0.75 / rank).items():
        merged[f"{name}.weight"] = (merged[f"{name}.weight"] + update).astype(np.float32)
    folder = tmp_path / "merged"
    folder.mkdir()
    (folder / "config.json").write_text((GOLDEN / model / "config.json").read_text())
    save_file(merged, folder / WEIGHTS)
    actual = loaded(model, lora=tmp_path, lora_scale=0.5).params
    expected = load_component(folder, mesh=make_mesh(devices=jax.devices()[:1])).params
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected
    )


def test_slices_of_a_merged_convolution_match_the_full_sum():
    model, rng = "sd35-medium-tiny", np.random.default_rng(1)
    name, shape = "pos_embed.proj.weight", (32, 4, 2, 2)
    with TensorFiles([GOLDEN / model / WEIGHTS]) as files:
        folder = GOLDEN / "lora-sd35-diffusers"
        merged = merge_lora(files, folder)
        adapter = (
            read_lora(folder)
            .popitem()[1]
            ._replace(
                down=rng.standard_normal((2, 16), np.float32),
                up=rng.standard_normal((32, 2), np.float32),
                scale=3.0,
                kernel=shape[1:],
            )
        )
        merged._adapters[name] = adapter
        assert adapter.shape == shape
        full = files.read(name) + 3.0 * (adapter.up @ adapter.down).reshape(shape)
        for index in [(), (slice(2, 5), slice(1, 3), slice(0, 2), slice(1, 2)), (slice(4, 9),)]:
            np.testing.assert_allclose(merged.read(name, index), full[index], atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_adapters_are_computed_in_float32(dtype, tmp_path):
    model = "flux-dev-tiny"
    adapters = {
        name: tuple(a.astype(dtype) for a in pair) for name, pair in make_adapters(model).items()
    }
    save_file(release_layout("diffusion_model.")(model, adapters), tmp_path / LORA_FILE)
    exact = {name: tuple(np.float32(a) for a in pair) for name, pair in adapters.items()}
    updates = expected_updates(model, exact, lambda rank: 1.0)
    for name, adapter in read_lora(tmp_path).items():
        update = adapter.part(slice(None), slice(None))
        np.testing.assert_allclose(update, updates[name], rtol=1e-5, atol=1e-5)


def save_flux_lora(tmp_path, **extra_tensors):
    tensors = release_layout("lora_unet_", **KOHYA)("flux-dev-tiny", make_adapters("flux-dev-tiny"))
    save_file(tensors | extra_tensors, tmp_path / LORA_FILE)
    return tmp_path


TEXT_ENCODER_TENSORS = [
    ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "lora_te1"),
    ("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", "lora_te"),
    ("lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight", "lora_te3"),
    ("text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "text_encoder"),
    ("text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.lora_B.weight", "text_encoder_2"),
    ("text_encoders.clip_l.transformer.text_model.encoder.x.lora_A.weight", "text_encoders.clip_l"),
    ("text_encoders.t5xxl.transformer.encoder.x.lora_A.weight", "text_encoders.t5xxl"),
    ("base_model.model.text_model.encoder.layers.0.x.lora_A.weight", "text_model"),
    ("clip_l.text_model.encoder.x.lora_A.weight", "clip_l"),
    ("bundle_emb.token.clip_l", "bundle_emb"),
]


@pytest.mark.parametrize(("tensor", "encoder"), TEXT_ENCODER_TENSORS)
def test_text_encoder_adapters_are_ignored_with_one_message(tensor, encoder, tmp_path, recorder):
    expected = read_lora(save_flux_lora(tmp_path))
    actual = read_lora(save_flux_lora(tmp_path, **{tensor: np.ones((2, 3), np.float32)}), recorder)
    assert actual.keys() == expected.keys()
    (line,) = recorder.lines
    assert f"ignored 1 tensors of text encoders ({encoder})" in line
    save_file({tensor: np.ones((2, 3), np.float32)}, tmp_path / LORA_FILE)
    with pytest.raises(ValueError, match=f"adapters must be for a transformer, got {encoder}"):
        read_lora(tmp_path)


def test_ignored_adapters_are_reported_when_loading_but_not_checking(tmp_path, recorder):
    tensor = {TEXT_ENCODER_TENSORS[0][0]: np.ones((2, 3), np.float32)}
    folder = save_flux_lora(tmp_path, **tensor)
    loaded("flux-dev-tiny", lora=folder, progress=recorder)
    assert len([line for line in recorder.lines if "ignored" in line]) == 1
    check_component(GOLDEN / "flux-dev-tiny", lora=folder)


ONES = np.ones((2, 32), np.float32)
QKV_KEY = "diffusion_model.double_blocks.0.img_attn.qkv"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {f"{QKV_KEY}.lora_A.weight": ONES, f"{QKV_KEY}.lora_B.weight": np.ones((97, 2))},
            rf"layer {QKV_KEY[16:]} must have 3 \* 32 rows \(.*to_q, .*to_v\), got 97",
        ),
        (
            {"lora_unet_x.lora_down.weight": ONES, "lora_unet_x.lora_up.weight": ONES.T},
            "layers must belong to a FLUX or SD3 transformer, got lora_unet_x",
        ),
        (
            {
                "lora_unet_down_blocks_0_q.lora_down.weight": ONES,
                "lora_unet_down_blocks_0_q.lora_up.weight": ONES.T,
            },
            "must be for a FLUX or SD3 transformer, got a UNet",
        ),
        (
            {"unet.mid_block.q.lora_A.weight": ONES, "unet.mid_block.q.lora_B.weight": ONES.T},
            "must be for a FLUX or SD3 transformer, got a UNet",
        ),
        (
            {
                "x_embedder.lora_A.weight": ONES,
                "x_embedder.lora_B.weight": ONES.T,
                "img_in.lora_A.weight": ONES,
                "img_in.lora_B.weight": ONES.T,
            },
            r"layer x_embedder must have one adapter, got two",
        ),
        (
            {"img_in.lora_A.a.weight": ONES, "img_in.lora_A.b.weight": ONES},
            r"layer img_in must have one adapter, got two",
        ),
        ({"img_in.dora_scale": ONES}, "adapters must be plain LoRA, got DoRA"),
        ({"img_in.lora_magnitude_vector.weight": ONES}, "adapters must be plain LoRA, got DoRA"),
        ({"img_in.lokr_w1": ONES}, "tensors must be lora_A and lora_B of linear layers, or alpha"),
        ({"img_in.diff_b": ONES}, "tensors must be lora_A and lora_B of linear layers, or alpha"),
        ({"img_in.lora_B.bias": ONES}, "tensors must be lora_A and lora_B of linear layers"),
        (
            {
                "img_in.lora_A.weight": ONES,
                "img_in.lora_B.weight": ONES.T,
                "img_in.alpha": np.ones(3, np.float32),
            },
            "layer img_in must have one alpha, got 3",
        ),
        (
            {"img_in.lora_A.weight": ONES[:0], "img_in.lora_B.weight": ONES.T[:, :0]},
            r"layer img_in must have A \[rank, in\] and B",
        ),
    ],
)
def test_invalid_adapters_are_refused_in_one_line(tensors, message, tmp_path):
    save_file({name: np.float32(array) for name, array in tensors.items()}, tmp_path / LORA_FILE)
    with pytest.raises(ValueError, match=message) as raised:
        read_lora(tmp_path)
    assert "\n" not in str(raised.value)


def test_zero_bias_and_weight_updates_are_ignored(tmp_path):
    zeros = {
        f"img_in.{name}": np.zeros(32, np.float32) for name in ("diff", "diff_b", "lora_B.bias")
    }
    assert (
        read_lora(save_flux_lora(tmp_path, **zeros)).keys()
        == read_lora(save_flux_lora(tmp_path)).keys()
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_nonfinite_adapters_are_refused_with_the_tensor_name(value, dtype, tmp_path):
    tensors = release_layout("diffusion_model.")("flux-dev-tiny", make_adapters("flux-dev-tiny"))
    name = f"{QKV_KEY}.lora_B.weight"
    tensors[name] = tensors[name].astype(dtype)
    tensors[name][50, 1 % tensors[name].shape[1]] = value
    save_file(tensors, tmp_path / LORA_FILE)
    message = rf"^LoRA file .*: tensor {re.escape(name)} in {LORA_FILE} must be finite, got NaN"
    with pytest.raises(ValueError, match=message):
        read_lora(tmp_path)


def test_adapters_beyond_float32_range_are_refused(tmp_path):
    tensors = {"img_in.lora_A.weight": np.full((2, 16), 1e300), "img_in.lora_B.weight": ONES.T}
    save_file(tensors, tmp_path / LORA_FILE)
    with pytest.raises(ValueError, match=r"img_in.lora_A.weight must be finite, got NaN or inf"):
        read_lora(tmp_path)


def test_nonfinite_model_weights_are_refused(tmp_path):
    weights, name = base_weights("flux-dev-tiny"), "transformer_blocks.1.attn.to_k.weight"
    weights[name][3, 4] = np.nan
    (tmp_path / "config.json").write_text((GOLDEN / "flux-dev-tiny/config.json").read_text())
    save_file(weights, tmp_path / WEIGHTS)
    message = rf"{tmp_path}: tensor {re.escape(name)} in {WEIGHTS} must be finite, got NaN"
    with pytest.raises(ValueError, match=message):
        load_component(tmp_path, mesh=make_mesh(devices=jax.devices()[:1]))


def test_nonfinite_tensors_are_not_written(tmp_path):
    for value in (np.nan, np.inf):
        nonfinite = np.array([1, value], ml_dtypes.bfloat16)
        with pytest.raises(ValueError, match="tensor b must be finite, got NaN or infinity"):
            write_tensors(tmp_path / "x.safetensors", {"a": np.ones(2), "b": nonfinite}, {})
    assert not list(tmp_path.iterdir())
    for i, dtype in enumerate((np.float16, "bfloat16")):
        largest = np.array([ml_dtypes.finfo(dtype).max], dtype)
        write_tensors(tmp_path / f"{i}.safetensors", {"b": largest, "empty": largest[:0]}, {})


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        ({"lora_alpha": None, "r": 2}, 1.0),
        ({"lora_alpha": None, "alpha_pattern": None, "rank_pattern": None}, 1.0),
        ({"r": 2}, 1.0),
        ({"lora_alpha": 6, "r": 4, "rank_pattern": {"img_attn.qkv": 2}}, 3.0),
        ({"lora_alpha": 6, "alpha_pattern": {"img_attn.qkv": 8}}, 4.0),
        ({"lora_alpha": None, "alpha_pattern": {QKV_KEY: 8}}, 4.0),
        ({"lora_alpha": None, "use_rslora": True}, 2**0.5),
        ({"lora_alpha": 6, "use_rslora": True}, 6 / 2**0.5),
    ],
)
def test_scale_is_alpha_over_the_rank_of_the_tensors(metadata, scale, tmp_path):
    """A missing or null alpha is replaced by the rank."""
    tensors = {f"{QKV_KEY}.lora_A.weight": ONES, f"{QKV_KEY}.lora_B.weight": np.ones((96, 2))}
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: np.float32(array) for name, array in tensors.items()}, file)
    (tmp_path / "adapter_config.json").write_text(json.dumps(metadata))
    adapters = read_lora(tmp_path)
    assert len(adapters) == 3
    for adapter in adapters.values():
        assert adapter.scale == pytest.approx(scale)
