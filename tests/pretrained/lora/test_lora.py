"""Tests of LoRA adapters: merging, files of other libraries and invalid files."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fmjax._arrays import TextShape
from fmjax.networks import LoRAConfig
from fmjax.pretrained.components import load_component
from fmjax.pretrained.files import TensorFiles, find_files
from fmjax.pretrained.lora.files import LORA_FILE, merge_lora, read_lora
from fmjax.pretrained.lora.layouts import chosen_adapters
from fmjax.pretrained.tuning import save_lora
from fmjax.sharding import MeshConfig, make_mesh
from tests.golden_models import GOLDEN, golden_io, loaded, relative_error
from tests.networks.test_released import inputs
from tests.released import CASES, LAYERS, USUAL, outputs, released_params, tuned

FLUX = "flux-dev-tiny"
# LoRA files of diffusers 0.42.1 (with different ranks and alphas for some layers), of PEFT 0.21.2
# (scale alpha / sqrt(rank)) and with kohya's tensor names, each with the output of diffusers.
EXTERNAL_FILES = {
    "lora-flux-diffusers": FLUX,
    "lora-sd35-diffusers": "sd35-medium-tiny",
    "lora-sd3-peft": "sd3-medium-tiny",
    "lora-flux-kohya": FLUX,
}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "lora"), CASES)
def test_merged_and_unmerged_outputs_agree(model, lora, tmp_path):
    tuning, plain = tuned(model, lora), tuned(model, None)
    adapters, base = released_params(model, tuning)
    save_lora(tmp_path / "lora.safetensors", adapters, tuning)
    merged = loaded(model, lora=tmp_path / "lora.safetensors").params
    unmerged, without_adapters = outputs(tuning, adapters, base), outputs(plain, base)
    assert relative_error(without_adapters, unmerged) > 0.05
    # The largest measured float32 rounding error of two blocks is 5e-6.
    assert relative_error(outputs(plain, merged), unmerged) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize(("model", "lora"), CASES[: len(LAYERS)])
def test_initial_adapters_do_not_change_the_output(model, lora):
    tuning = tuned(model, lora)
    adapters, base = released_params(model, tuning, zero=True)
    np.testing.assert_array_equal(
        outputs(tuning, adapters, base), outputs(tuned(model, None), base)
    )


@pytest.mark.parametrize(("file", "model"), EXTERNAL_FILES.items())
def test_external_files_match_the_outputs_of_diffusers(file, model):
    component, params = loaded(model, lora=GOLDEN / file)
    with np.load(GOLDEN / file / "out.npz") as arrays:
        io = golden_io(model) | {"out_sample": arrays["out"]}
    t, x, cond, expected = inputs(model, io)
    net = component.network(x.shape[1:], TextShape(*cond.tokens.shape[1:], cond.pooled.shape[1]))
    out = jax.jit(net.apply)(params, t, x, cond)
    assert relative_error(out, expected) < 6e-5


@pytest.mark.slow
def test_saved_adapters_are_restored_with_alpha_applied(tmp_path):
    tuning = tuned(FLUX, LoRAConfig(2, 3.0, ("attn.to_q",)))
    adapters, _ = released_params(FLUX, tuning)
    save_lora(tmp_path / LORA_FILE, adapters, tuning)
    restored = read_lora(tmp_path)
    blocks = [f"{prefix}transformer_blocks.{i}" for prefix in ("", "single_") for i in range(2)]
    assert sorted(restored) == sorted(f"{block}.attn.to_q" for block in blocks)
    down = adapters["single"]["to_heads"]["linear"]["lora"]["q"]["down"]["kernel"]
    layer = restored["single_transformer_blocks.1.attn.to_q"]
    np.testing.assert_array_equal(layer.down, down[1].T)
    assert layer.scale == 1.0
    up = adapters["single"]["to_heads"]["linear"]["lora"]["q"]["up"]["kernel"][1]
    # The scale is alpha / rank. fmjax orders the even channels of a head before the odd channels.
    np.testing.assert_allclose(layer.up[1], 1.5 * up[:, 8], rtol=1e-6)


@pytest.mark.slow
def test_merged_weights_are_linear_in_scale_on_any_mesh(tmp_path):
    """A scale of 0 gives exactly the base weights, and eight devices match one device."""
    lora, folder = GOLDEN / "lora-flux-diffusers", GOLDEN / FLUX
    unscaled, base = loaded(FLUX, lora=lora, lora_scale=0.0).params, loaded(FLUX).params
    jax.tree.map(np.testing.assert_array_equal, unscaled, base)
    sharded = load_component(folder, mesh=make_mesh(MeshConfig(1, 4, 2)), lora=lora).params
    full, half = loaded(FLUX, lora=lora).params, loaded(FLUX, lora=lora, lora_scale=0.5).params
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(full), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for a, b, c in zip(*map(jax.tree.leaves, (full, half, base)), strict=True):
        np.testing.assert_allclose(np.asarray(a) + c, 2 * b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_adapter_initialization_follows_peft_and_keeps_other_params():
    tuning, plain = tuned(FLUX, USUAL), tuned(FLUX, None)
    params, key = tuning.init(jax.random.key(3)), jax.random.key(3)
    np.testing.assert_array_equal(params["tokens"]["kernel"], plain.init(key)["tokens"]["kernel"])
    lora = params["double"]["image"]["out"]["lora"]
    down = np.asarray(lora["down"]["kernel"])
    # A is uniform within 1 / sqrt(inputs) and differs between blocks. The largest of 192 samples
    # exceeds 0.9 of the bound.
    assert 0.9 < np.abs(down).max() * np.sqrt(32) <= 1.0
    assert not np.array_equal(down[0], down[1])
    assert not np.asarray(lora["up"]["kernel"]).any()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            ("attn.to_w",),
            "lora.layers must name linear layers of this network, such as .*'attn.to_w'",
        ),
        (("transformer_blocks.1.attn.to_q",), "must select a layer in all blocks of a stack"),
        (("attn.norm_q",), "lora.layers must name linear layers"),
    ],
)
def test_unknown_layers_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        chosen_adapters(tuned(FLUX, None).layouts, LoRAConfig(layers=layers))


def rename_tensors(old, new):
    return lambda tensors: {name.replace(old, new): array for name, array in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            rename_tensors("ff.net.0", "fc"),
            r"must have adapters for layers of .*, got 2 unknown layers of 29 \(.*fc.proj",
        ),
        (
            rename_tensors("transformer.", "text_encoder."),
            "must be for a transformer, got text_encoder",
        ),
        (
            rename_tensors("lora_A", "lora_C"),
            "tensors must be lora_A and lora_B of linear layers, or",
        ),
        (lambda t: {n: a for n, a in t.items() if "lora_A" in n}, "have both A and B, got no B"),
        (lambda t: {n: a[:, :1] for n, a in t.items()}, r"must have A \[rank, in\] and B"),
        (lambda t: {n: a[..., None] for n, a in t.items()}, r"must have A \[rank, in\] and B"),
        (lambda _: {}, "must hold adapters, got none"),
        (
            lambda _: {
                "lora_unet_x.lora_up.weight": np.ones((4, 2), np.float32),
                "lora_unet_x.lora_down.weight": np.ones((2, 4), np.float32),
            },
            "layers must belong to a FLUX or SD3 transformer, got lora_unet_x",
        ),
        (
            lambda _: {
                "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": np.ones((4, 2)),
                "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": np.ones((2, 4)),
            },
            r"must have 3 \* 4 rows .*, got 4",
        ),
    ],
)
def test_invalid_files_are_refused_in_one_line(change, message, tmp_path):
    save_file(change(load_file(GOLDEN / "lora-flux-diffusers" / LORA_FILE)), tmp_path / LORA_FILE)
    with pytest.raises(ValueError, match=message) as raised:
        loaded(FLUX, lora=tmp_path)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"LoRA file {tmp_path}")


def test_error_counts_all_unknown_layers_and_names_some():
    folder, message = GOLDEN / "sd3-medium-tiny", r"got \d\d unknown layers of 29 \(.*, \.\.\.\)"
    with TensorFiles(find_files(folder)) as files, pytest.raises(ValueError, match=message):
        merge_lora(files, GOLDEN / "lora-flux-diffusers")


def test_files_of_other_types_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a LoRA file, got no such file"):
        read_lora(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=f"or a folder with {LORA_FILE} or adapter_model"):
        read_lora(tmp_path)
    (tmp_path / "lora.bin").write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"must be a .safetensors file, because other formats can run code"
    ):
        read_lora(tmp_path / "lora.bin")
    (tmp_path / LORA_FILE).write_bytes(b"x")
    with pytest.raises(ValueError, match="must be a complete safetensors file"):
        read_lora(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ('{"transformer.use_dora": true}', "adapters must be plain LoRA, got DoRA"),
        ("{", "metadata must be JSON"),
    ],
)
def test_unsupported_metadata_is_refused(metadata, message, tmp_path):
    tensors = load_file(GOLDEN / "lora-flux-diffusers" / LORA_FILE)
    save_file(tensors, tmp_path / LORA_FILE, {"lora_adapter_metadata": metadata})
    with pytest.raises(ValueError, match=message):
        read_lora(tmp_path)


def test_alpha_is_read_from_metadata_config_or_tensors(tmp_path):
    """The default value of alpha is the rank."""
    layer = "transformer_blocks.0.attn.to_q"
    pair = {
        f"{layer}.lora_A.weight": np.ones((2, 32), np.float32),
        f"{layer}.lora_B.weight": np.ones((32, 2), np.float32),
    }
    file = tmp_path / "adapter_model.safetensors"
    save_file(pair, file)
    assert read_lora(file)[layer].scale == 1.0
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 3, "r": 2}')
    assert read_lora(tmp_path)[layer].scale == 1.5
    for no_alpha in (
        '{"lora_alpha": null, "alpha_pattern": null}',
        '{"r": 2, "lora_dropout": "x"}',
    ):
        (tmp_path / "adapter_config.json").write_text(no_alpha)
        assert read_lora(tmp_path)[layer].scale == 1.0
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": "3"}')
    with pytest.raises(ValueError, match=r"config\.json must hold a number at lora_alpha, got '3'"):
        read_lora(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    metadata = {"transformer.lora_alpha": 3, "transformer.alpha_pattern": {"attn.to_q": 8}}
    save_file(pair, file, {"lora_adapter_metadata": json.dumps(metadata)})
    assert read_lora(file)[layer].scale == 4.0
    prefixed = {f"base_model.model.{name}": array for name, array in pair.items()}
    with_alphas = shutil.copytree(tmp_path, tmp_path / "alphas") / "adapter_model.safetensors"
    save_file(prefixed | {f"{layer}.alpha": np.array(6.0, np.float32)}, with_alphas)
    assert read_lora(with_alphas)[layer].scale == 3.0
