"""One adapter in the layouts of every trainer: each layer gets the sum that its file states."""

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

# Layers as they were first released, and what they are in diffusers; {} is a block's number. The
# order of the parts is that of the rows.
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
AROUND = {"final_layer.adaLN_modulation.1": "norm_out.linear", "final_layer.linear": "proj_out"}
MODELS = {
    "flux-dev-tiny": AROUND
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
    "sd35-medium-tiny": AROUND
    | {
        "context_embedder": "context_embedder",
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": f"{TIME}.linear_1",
        "t_embedder.mlp.2": f"{TIME}.linear_2",
        "y_embedder.mlp.0": f"{POOLED}.linear_1",
        "y_embedder.mlp.2": f"{POOLED}.linear_2",
    },
}


def in_blocks(released, diffusers, layers, number):
    """Names of the layers of a block, in both ways."""
    return {
        f"{released}.{number}.{name}": " ".join(f"{diffusers}.{number}.{n}" for n in of.split())
        for name, of in layers.items()
    }


for i in range(2):
    MODELS["flux-dev-tiny"] |= in_blocks("double_blocks", "transformer_blocks", DOUBLE, i)
    MODELS["flux-dev-tiny"] |= in_blocks("single_blocks", "single_transformer_blocks", SINGLE, i)
for i in range(3):
    MODELS["sd35-medium-tiny"] |= in_blocks("joint_blocks", "transformer_blocks", JOINT, i)


def base(model):
    return load_file(GOLDEN / model / WEIGHTS)


def made(model):
    """A and B of every layer by its name in the release, of ranks 1 to 3."""
    weights, rng, found = base(model), np.random.default_rng(0), {}
    for number, (name, of) in enumerate(MODELS[model].items()):
        parts = [weights.get(f"{part}.weight") for part in of.split()]
        if any(part is None for part in parts):  # SD3's last block lacks some.
            continue
        rank, rows = 1 + number % 3, sum(map(len, parts))
        down = rng.standard_normal((rank, *parts[0].shape[1:]), np.float32)
        tail = (1, 1) if down.ndim == 4 else ()
        found[name] = down, rng.standard_normal((rows, rank, *tail), np.float32)
    return found


def halves_swapped(name, array):
    """The releases have shift before scale in a modulation of two parts, diffusers after it."""
    two = "adaLN" in name and len(array) == 64
    return np.concatenate([array[32:], array[:32]]) if two else array


def expected(model, adapters, scale):
    """What is added to every weight of diffusers."""
    weights, found = base(model), {}
    for name, (down, up) in adapters.items():
        product = up.reshape(len(up), -1).astype(float) @ down.reshape(len(down), -1)
        product = halves_swapped(name, scale(len(down)) * product)
        start = 0
        for part in MODELS[model][name].split():
            weight = weights[f"{part}.weight"]
            found[part] = product[start : start + len(weight)].reshape(weight.shape)
            start += len(weight)
        assert start == len(product)
    return found


def by_diffusers(model, adapters):
    """The same adapters, one of each layer of diffusers."""
    weights = base(model)
    for name, (down, up) in adapters.items():
        up, start = halves_swapped(name, up), 0
        for part in MODELS[model][name].split():
            rows = len(weights[f"{part}.weight"])
            yield part, (down, up[start : start + rows])
            start += rows


def of_release(prefix, down="lora_A.weight", up="lora_B.weight", alpha=False, spelled=str):
    def layout(model, adapters):
        return named(adapters.items(), prefix, down, up, alpha, spelled)

    return layout


def of_diffusers(prefix, down="lora_A.weight", up="lora_B.weight", alpha=False, spelled=str):
    def layout(model, adapters):
        return named(by_diffusers(model, adapters), prefix, down, up, alpha, spelled)

    return layout


def named(adapters, prefix, down, up, alpha, spelled):
    tensors = {}
    for name, (a, b) in adapters:
        layer = prefix + spelled(name)
        tensors |= {f"{layer}.{down}": a, f"{layer}.{up}": np.ascontiguousarray(b)}
        if alpha:
            tensors[f"{layer}.alpha"] = np.array(1.5, np.float32)
    return tensors


def underscored(name):
    return name.replace(".", "_")


OLD = {"down": "lora_down.weight", "up": "lora_up.weight"}
KOHYA = OLD | {"alpha": True, "spelled": underscored}
LAYOUTS = {
    "ComfyUI": of_release("diffusion_model."),
    "ComfyUI, kohya's endings": of_release("diffusion_model.", **OLD, alpha=True),
    "no prefix": of_release(""),
    "no prefix, kohya's endings": of_release("", **OLD, alpha=True),
    "transformer": of_release("transformer.", **OLD, alpha=True),
    "checkpoint": of_release("model.diffusion_model."),
    "PEFT of the release": of_release("base_model.model."),
    "kohya": of_release("lora_unet_", **KOHYA),
    "diffusers": of_diffusers("transformer."),
    "diffusers, no prefix": of_diffusers("", **OLD),
    "diffusers, old": of_diffusers("transformer.", "lora.down.weight", "lora.up.weight"),
    "PEFT": of_diffusers("base_model.model.", "lora_A.default.weight", "lora_B.default.weight"),
    "ComfyUI of diffusers": of_diffusers("diffusion_model.", alpha=True),
    "kohya of diffusers": of_diffusers("lora_unet_", **KOHYA),
    "OneTrainer": of_diffusers("lora_transformer_", **KOHYA),
    "LyCORIS": of_diffusers("lycoris_", **KOHYA),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_an_adapter_adds_the_same_to_every_layer(layout, model, tmp_path):
    adapters = made(model)
    tensors = LAYOUTS[layout](model, adapters)
    save_file(tensors, tmp_path / LORA_FILE)
    stated = any(name.endswith(".alpha") for name in tensors)
    want = expected(model, adapters, lambda rank: 1.5 / rank if stated else 1.0)
    found = read_lora(tmp_path)
    assert found.keys() == want.keys()
    for name, adapter in found.items():
        added = adapter.part(slice(None), slice(None)).reshape(adapter.shape)
        np.testing.assert_allclose(added, want[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("model", MODELS)
def test_the_tensors_of_a_model_have_the_products_added(model, tmp_path):
    adapters, weights = made(model), base(model)
    save_file(LAYOUTS["ComfyUI"](model, adapters), tmp_path / LORA_FILE)
    want = expected(model, adapters, lambda rank: 0.5)
    with TensorFiles([GOLDEN / model / WEIGHTS]) as files:
        merged = merge_lora(files, tmp_path, 0.5)
        for name, weight in weights.items():
            sums = weight + want.get(name.removesuffix(".weight"), 0.0)
            np.testing.assert_allclose(merged.read(name), sums, rtol=1e-5, atol=1e-5, err_msg=name)


def test_the_network_has_the_weights_with_the_products_added(tmp_path):
    """All parameters are those of the folder whose weights were added to by hand."""
    model = "sd35-medium-tiny"
    adapters, merged = made(model), base(model)
    save_file(LAYOUTS["kohya"](model, adapters), tmp_path / LORA_FILE)
    for name, added in expected(model, adapters, lambda rank: 0.75 / rank).items():
        merged[f"{name}.weight"] = (merged[f"{name}.weight"] + added).astype(np.float32)
    folder = tmp_path / "merged"
    folder.mkdir()
    (folder / "config.json").write_text((GOLDEN / model / "config.json").read_text())
    save_file(merged, folder / WEIGHTS)
    found = loaded(model, lora=tmp_path, lora_scale=0.5).params
    want = load_component(folder, mesh=make_mesh(devices=jax.devices()[:1])).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, want)


def test_parts_of_a_convolution_are_those_of_its_sum():
    model, rng = "sd35-medium-tiny", np.random.default_rng(1)
    name, shape = "pos_embed.proj.weight", (32, 4, 2, 2)
    with TensorFiles([GOLDEN / model / WEIGHTS]) as files:
        path = GOLDEN / "lora-sd35-diffusers"
        merged = merge_lora(files, path)
        adapter = (
            read_lora(path)
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
        whole = files.read(name) + 3.0 * (adapter.up @ adapter.down).reshape(shape)
        for index in [(), (slice(2, 5), slice(1, 3), slice(0, 2), slice(1, 2)), (slice(4, 9),)]:
            np.testing.assert_allclose(merged.read(name, index), whole[index], atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_numbers_of_two_bytes_are_read_as_they_are(dtype, tmp_path):
    model = "flux-dev-tiny"
    adapters = {name: tuple(a.astype(dtype) for a in pair) for name, pair in made(model).items()}
    save_file(of_release("diffusion_model.")(model, adapters), tmp_path / LORA_FILE)
    exact = {name: tuple(np.float32(a) for a in pair) for name, pair in adapters.items()}
    want = expected(model, exact, lambda rank: 1.0)
    for name, adapter in read_lora(tmp_path).items():
        added = adapter.part(slice(None), slice(None))
        np.testing.assert_allclose(added, want[name], rtol=1e-5, atol=1e-5)


def flux_file(tmp_path, **more):
    tensors = of_release("lora_unet_", **KOHYA)("flux-dev-tiny", made("flux-dev-tiny"))
    save_file(tensors | more, tmp_path / LORA_FILE)
    return tmp_path


TEXT_ENCODERS = [
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


@pytest.mark.parametrize(("tensor", "encoder"), TEXT_ENCODERS)
def test_adapters_of_text_encoders_are_left_out_which_is_said_once(
    tensor, encoder, tmp_path, heard
):
    bare = read_lora(flux_file(tmp_path))
    found = read_lora(flux_file(tmp_path, **{tensor: np.ones((2, 3), np.float32)}), heard)
    assert found.keys() == bare.keys()
    (line,) = heard.lines
    assert f"ignored 1 tensors of text encoders ({encoder})" in line
    save_file({tensor: np.ones((2, 3), np.float32)}, tmp_path / LORA_FILE)
    with pytest.raises(ValueError, match=f"adapters must be for a transformer, got {encoder}"):
        read_lora(tmp_path)


def test_loading_says_what_is_left_out_and_checking_does_not(tmp_path, heard):
    tensor = {TEXT_ENCODERS[0][0]: np.ones((2, 3), np.float32)}
    path = flux_file(tmp_path, **tensor)
    loaded("flux-dev-tiny", lora=path, progress=heard)
    assert len([line for line in heard.lines if "ignored" in line]) == 1
    check_component(GOLDEN / "flux-dev-tiny", lora=path)


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
def test_what_is_no_plain_adapter_of_a_transformer_is_one_line(tensors, message, tmp_path):
    save_file({name: np.float32(array) for name, array in tensors.items()}, tmp_path / LORA_FILE)
    with pytest.raises(ValueError, match=message) as raised:
        read_lora(tmp_path)
    assert "\n" not in str(raised.value)


def test_additions_of_zeros_are_passed_over(tmp_path):
    zeros = {
        f"img_in.{name}": np.zeros(32, np.float32) for name in ("diff", "diff_b", "lora_B.bias")
    }
    assert read_lora(flux_file(tmp_path, **zeros)).keys() == read_lora(flux_file(tmp_path)).keys()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_numbers_that_are_not_finite_are_refused_with_the_name_of_the_layer(wrong, dtype, tmp_path):
    tensors = of_release("diffusion_model.")("flux-dev-tiny", made("flux-dev-tiny"))
    name = f"{QKV_KEY}.lora_B.weight"
    tensors[name] = tensors[name].astype(dtype)
    tensors[name][50, 1 % tensors[name].shape[1]] = wrong
    save_file(tensors, tmp_path / LORA_FILE)
    message = rf"^LoRA file .*: tensor {re.escape(name)} in {LORA_FILE} must be finite, got NaN"
    with pytest.raises(ValueError, match=message):
        read_lora(tmp_path)


def test_numbers_too_large_for_float32_are_refused_like_infinity(tmp_path):
    tensors = {"img_in.lora_A.weight": np.full((2, 16), 1e300), "img_in.lora_B.weight": ONES.T}
    save_file(tensors, tmp_path / LORA_FILE)
    with pytest.raises(ValueError, match=r"img_in.lora_A.weight must be finite, got NaN or inf"):
        read_lora(tmp_path)


def test_a_released_model_with_a_number_that_is_not_finite_is_refused(tmp_path):
    weights, name = base("flux-dev-tiny"), "transformer_blocks.1.attn.to_k.weight"
    weights[name][3, 4] = np.nan
    (tmp_path / "config.json").write_text((GOLDEN / "flux-dev-tiny/config.json").read_text())
    save_file(weights, tmp_path / WEIGHTS)
    message = rf"{tmp_path}: tensor {re.escape(name)} in {WEIGHTS} must be finite, got NaN"
    with pytest.raises(ValueError, match=message):
        load_component(tmp_path, mesh=make_mesh(devices=jax.devices()[:1]))


def test_no_file_with_numbers_that_are_not_finite_is_written(tmp_path):
    for wrong in (np.nan, np.inf):
        bad = np.array([1, wrong], ml_dtypes.bfloat16)
        with pytest.raises(ValueError, match="tensor b must be finite, got NaN or infinity"):
            write_tensors(tmp_path / "x.safetensors", {"a": np.ones(2), "b": bad}, {})
    assert not list(tmp_path.iterdir())
    most = {name: np.array([ml_dtypes.finfo(name).max], name) for name in (np.float16, "bfloat16")}
    for number, array in enumerate(most.values()):
        write_tensors(tmp_path / f"{number}.safetensors", {"b": array, "none": array[:0]}, {})


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
def test_the_scale_is_alpha_by_the_rank_that_the_tensors_have(metadata, scale, tmp_path):
    """An alpha that is null or missing is the rank."""
    tensors = {f"{QKV_KEY}.lora_A.weight": ONES, f"{QKV_KEY}.lora_B.weight": np.ones((96, 2))}
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: np.float32(array) for name, array in tensors.items()}, file)
    (tmp_path / "adapter_config.json").write_text(json.dumps(metadata))
    found = read_lora(tmp_path)
    assert len(found) == 3
    for adapter in found.values():
        assert adapter.scale == pytest.approx(scale)
