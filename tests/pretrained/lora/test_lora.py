"""Adapters: merged as unmerged, files made by others, and what is refused."""

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
# Files by diffusers 0.42.1 (ranks and alphas of their own for some layers), by PEFT 0.21.2 (alpha
# over the root of the rank), and under kohya's names; each with what diffusers then gives.
MADE_ELSEWHERE = {
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
    unmerged, before = outputs(tuning, adapters, base), outputs(plain, base)
    assert relative_error(before, unmerged) > 0.05  # They do something.
    # Float32 through two blocks; 5e-6 was the most that was seen.
    assert relative_error(outputs(plain, merged), unmerged) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize(("model", "lora"), CASES[: len(LAYERS)])
def test_fresh_adapters_change_nothing(model, lora):
    tuning = tuned(model, lora)
    adapters, base = released_params(model, tuning, zero=True)
    np.testing.assert_array_equal(
        outputs(tuning, adapters, base), outputs(tuned(model, None), base)
    )


@pytest.mark.parametrize(("file", "model"), MADE_ELSEWHERE.items())
def test_files_made_elsewhere_give_the_outputs_of_diffusers(file, model):
    component, params = loaded(model, lora=GOLDEN / file)
    with np.load(GOLDEN / file / "out.npz") as arrays:
        io = golden_io(model) | {"out_sample": arrays["out"]}
    t, x, cond, expected = inputs(model, io)
    net = component.network(x.shape[1:], TextShape(*cond.tokens.shape[1:], cond.pooled.shape[1]))
    out = jax.jit(net.apply)(params, t, x, cond)
    assert relative_error(out, expected) < 6e-5


@pytest.mark.slow
def test_a_file_read_again_has_the_adapters_that_were_written(tmp_path):
    tuning = tuned(FLUX, LoRAConfig(2, 3.0, ("attn.to_q",)))
    adapters, _ = released_params(FLUX, tuning)
    save_lora(tmp_path / LORA_FILE, adapters, tuning)
    found = read_lora(tmp_path)
    blocks = [f"{kind}transformer_blocks.{i}" for kind in ("", "single_") for i in range(2)]
    assert sorted(found) == sorted(f"{block}.attn.to_q" for block in blocks)
    down = adapters["single"]["to_heads"]["linear"]["lora"]["q"]["down"]["kernel"]
    layer = found["single_transformer_blocks.1.attn.to_q"]
    np.testing.assert_array_equal(layer.down, down[1].T)
    assert layer.scale == 1.0
    up = adapters["single"]["to_heads"]["linear"]["lora"]["q"]["up"]["kernel"][1]
    # Scaled by alpha / rank; of the first head's channels first the even ones, then the odd.
    np.testing.assert_allclose(layer.up[1], 1.5 * up[:, 8], rtol=1e-6)


@pytest.mark.slow
def test_scale_and_devices_decide_how_much_is_added_and_where(tmp_path):
    """A scale of 0 gives the base's bits; eight devices hold what one does."""
    lora, folder = GOLDEN / "lora-flux-diffusers", GOLDEN / FLUX
    none, base = loaded(FLUX, lora=lora, lora_scale=0.0).params, loaded(FLUX).params
    jax.tree.map(np.testing.assert_array_equal, none, base)
    eight = load_component(folder, mesh=make_mesh(MeshConfig(1, 4, 2)), lora=lora).params
    whole, half = loaded(FLUX, lora=lora).params, loaded(FLUX, lora=lora, lora_scale=0.5).params
    for a, b in zip(jax.tree.leaves(eight), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for a, b, c in zip(*map(jax.tree.leaves, (whole, half, base)), strict=True):
        np.testing.assert_allclose(np.asarray(a) + c, 2 * b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_adapters_are_drawn_as_pefts_and_leave_other_draws_alone():
    tuning, plain = tuned(FLUX, USUAL), tuned(FLUX, None)
    params, key = tuning.init(jax.random.key(3)), jax.random.key(3)
    np.testing.assert_array_equal(params["tokens"]["kernel"], plain.init(key)["tokens"]["kernel"])
    lora = params["double"]["image"]["out"]["lora"]
    down = np.asarray(lora["down"]["kernel"])
    # Uniform within 1 / sqrt(inputs), each block its own; 192 draws reach 0.9 of it.
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
def test_layers_that_there_are_not_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        chosen_adapters(tuned(FLUX, None).layouts, LoRAConfig(layers=layers))


def renamed(old, new):
    return lambda tensors: {name.replace(old, new): array for name, array in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            renamed("ff.net.0", "fc"),
            r"must have adapters for layers of .*, got 2 unknown layers of 29 \(.*fc.proj",
        ),
        (renamed("transformer.", "text_encoder."), "must be for a transformer, got text_encoder"),
        (renamed("lora_A", "lora_C"), "tensors must be lora_A and lora_B of linear layers, or"),
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
def test_a_file_of_something_else_is_one_clear_line(change, message, tmp_path):
    save_file(change(load_file(GOLDEN / "lora-flux-diffusers" / LORA_FILE)), tmp_path / LORA_FILE)
    with pytest.raises(ValueError, match=message) as raised:
        loaded(FLUX, lora=tmp_path)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"LoRA file {tmp_path}")


def test_of_many_unknown_layers_all_are_counted_and_some_named():
    folder, message = GOLDEN / "sd3-medium-tiny", r"got \d\d unknown layers of 29 \(.*, \.\.\.\)"
    with TensorFiles(find_files(folder)) as files, pytest.raises(ValueError, match=message):
        merge_lora(files, GOLDEN / "lora-flux-diffusers")


def test_what_is_no_lora_file_is_refused(tmp_path):
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
def test_metadata_that_cannot_be_followed_is_refused(metadata, message, tmp_path):
    tensors = load_file(GOLDEN / "lora-flux-diffusers" / LORA_FILE)
    save_file(tensors, tmp_path / LORA_FILE, {"lora_adapter_metadata": metadata})
    with pytest.raises(ValueError, match=message):
        read_lora(tmp_path)


def test_alphas_are_found_wherever_they_stand(tmp_path):
    """In metadata, in a file beside, in tensors; else they are the rank."""
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
    for none in ('{"lora_alpha": null, "alpha_pattern": null}', '{"r": 2, "lora_dropout": "x"}'):
        (tmp_path / "adapter_config.json").write_text(none)
        assert read_lora(tmp_path)[layer].scale == 1.0  # The rank, as where nothing is stated.
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": "3"}')
    with pytest.raises(ValueError, match=r"config\.json must hold a number at lora_alpha, got '3'"):
        read_lora(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    stated = {"transformer.lora_alpha": 3, "transformer.alpha_pattern": {"attn.to_q": 8}}
    save_file(pair, file, {"lora_adapter_metadata": json.dumps(stated)})
    assert read_lora(file)[layer].scale == 4.0
    prefixed = {f"base_model.model.{name}": array for name, array in pair.items()}
    alone = shutil.copytree(tmp_path, tmp_path / "alone") / "adapter_model.safetensors"
    save_file(prefixed | {f"{layer}.alpha": np.array(6.0, np.float32)}, alone)
    assert read_lora(alone)[layer].scale == 3.0
