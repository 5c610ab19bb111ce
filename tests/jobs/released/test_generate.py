"""Pictures of prompts: diffusers' own, and what is asked beside."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from fmjax.config import ODE_SOLVERS, guided
from fmjax.config.generate import GenerateConfig
from fmjax.jobs.released import request as requested_conditions
from fmjax.jobs.released.generate import (
    condition,
    decode_latents,
    encode_request,
    generate,
    released_experiment,
)
from fmjax.jobs.released.request import validate_request
from fmjax.pretrained import components
from fmjax.pretrained import prompts as encoding
from fmjax.pretrained.folder import open_model
from fmjax.pretrained.pipeline import (
    latents_of,
    load_transformer,
    read_latents,
    released_times,
)
from fmjax.pretrained.time_grid import released_sigmas
from fmjax.runs.sampling.batches import noise
from fmjax.sharding import MeshConfig
from fmjax.solvers import Euler, FixedSteps, sample
from tests.cli.test_cli import run
from tests.golden_models import GOLDEN, PIPELINES, golden_io, relative_error
from tests.released import on_one_device

SMALL = GenerateConfig(height=32, width=32, num_steps=2, mesh=MeshConfig(1, 1, -1))


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """But where a layout names all of its axes."""
    on_one_device(monkeypatch, requested_conditions)


def call(folder):
    """The call that diffusers' outputs are of, as fmjax's."""
    asked = json.loads((GOLDEN / folder / "io.json").read_text())
    config = GenerateConfig(
        height=asked["height"],
        width=asked["width"],
        num_steps=asked["num_inference_steps"],
        guidance=asked["guidance_scale"],
        negative=asked["negative_prompt"] or None,
    )
    return asked["prompt"], config


@pytest.mark.parametrize("folder", PIPELINES)
def test_sigmas_are_those_of_diffusers(folder):
    model, (_, config), io = open_model(GOLDEN / folder), call(folder), golden_io(folder)
    latents = latents_of(model, config.height, config.width)
    times = released_times(model, latents, config.num_steps)
    np.testing.assert_allclose(1.0 - times, io["sigmas"], atol=1e-7)
    np.testing.assert_allclose(1000 * (1.0 - times[:-1]), io["timesteps"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("folder", PIPELINES)
def test_latents_after_every_step_and_the_image_are_those_of_diffusers(folder):
    """Euler keeps every point; the tolerance is the issue's, the errors are near 1e-5."""
    model, (prompt, config), io = open_model(GOLDEN / folder), call(folder), golden_io(folder)
    request, packed = validate_request(model, config), folder.startswith("flux")
    cond, null = encode_request(request, [prompt])
    loaded = load_transformer(model, mesh=request.mesh, dtype="float32")
    experiment = released_experiment(request, loaded, cond, null)
    scale = 1.0 if null is None else request.guidance
    times = request.steps.times

    @jax.jit
    def solve(params, x0, cond):
        field = guided(experiment, params, scale)
        steps = FixedSteps(times)
        return sample(field, x0, cond, solver=Euler(), steps=steps, save_at=jnp.asarray(times[1:]))

    x0 = read_latents(io, request.latents, packed)
    solved = solve(loaded.params, x0, condition(request, cond, np.zeros(1, int)))
    for found, expected in zip(solved.trajectory, io["latents"], strict=True):
        expected = read_latents({"init_latents": expected}, request.latents, packed)
        assert relative_error(found, expected) < 1e-4
    images = decode_latents(request, np.asarray(solved.x1))
    assert relative_error(np.clip((images + 1) / 2, 0, 1), io["image"]) < 1e-4


@pytest.mark.parametrize("folder", PIPELINES)
def test_the_command_makes_diffusers_picture(folder, tmp_path, capsys):
    asked = json.loads((GOLDEN / folder / "io.json").read_text())
    negative = ["--negative", asked["negative_prompt"]] if asked["negative_prompt"] else []
    output = tmp_path / "out" / "picture.png"
    code = run(
        "generate",
        GOLDEN / folder,
        asked["prompt"],
        "--height",
        asked["height"],
        "--width",
        asked["width"],
        "--steps",
        asked["num_inference_steps"],
        "--guidance",
        asked["guidance_scale"],
        *negative,
        "--latents",
        GOLDEN / folder / "io.npz",
        "--output",
        output,
    )
    assert code == 0
    picture = Image.open(output)
    levels = 255 * golden_io(folder)["image"][0]
    np.testing.assert_allclose(np.asarray(picture, float), levels, atol=0.51)
    metadata = json.loads(picture.text["fmjax"])
    assert picture.text["prompt"] == metadata["prompt"] == asked["prompt"]
    assert metadata["num_steps"] == asked["num_inference_steps"]
    assert metadata["guidance"] == asked["guidance_scale"]
    assert f"wrote {output}" in capsys.readouterr().out


@pytest.mark.slow
def test_encoders_are_gone_before_the_transformer_comes(monkeypatch):
    model = open_model(GOLDEN / PIPELINES[0])
    seen = {}
    from fmjax.jobs.released import generate as module

    def watched(*args, **kwargs):
        seen["bytes"] = sum(array.nbytes for array in jax.live_arrays() if array.ndim >= 2)
        return load_transformer(*args, **kwargs)

    before = sum(array.nbytes for array in jax.live_arrays() if array.ndim >= 2)
    monkeypatch.setattr(module, "load_transformer", watched)
    generate(model, ["a cat"], SMALL)
    smallest = (model.root / "text_encoder" / "model.safetensors").stat().st_size
    assert seen["bytes"] - before < smallest / 4


@pytest.mark.slow
@pytest.mark.parametrize("folder", PIPELINES)
def test_one_device_makes_the_pictures_of_eight(folder):
    model = open_model(GOLDEN / folder)
    prompts = ["a cat", "a red fox"]
    layouts = [MeshConfig(1, 1, -1), MeshConfig(2, 2, 2)]
    found = [
        generate(model, prompts, replace(SMALL, mesh=mesh, num_images=2)).images for mesh in layouts
    ]
    assert found[0].shape == (4, 32, 32, 3)
    assert relative_error(found[1], found[0]) < 1e-4
    assert np.abs(found[0][0] - found[0][1]).max() > 0.1  # Another noise.


@pytest.mark.slow
def test_a_picture_depends_on_its_seed_and_number_alone():
    model = open_model(GOLDEN / PIPELINES[1])
    config = replace(SMALL, num_images=3, batch_size=2)
    three = generate(model, ["a cat"], config).images
    one_by_one = generate(model, ["a cat"], replace(config, batch_size=1)).images
    np.testing.assert_allclose(three, one_by_one, atol=1e-4)
    other = generate(model, ["a cat"], replace(config, seed=1)).images
    assert np.abs(other - three).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "steps"), [("heun", 3), ("tsit5", None)])
def test_any_solver_of_the_library_solves_the_field(solver, steps):
    """With fixed steps on the model's grid, or adaptive ones."""
    model = open_model(GOLDEN / PIPELINES[0])
    config = replace(SMALL, solver=solver, num_steps=steps, rtol=1e-5, atol=1e-5, guidance=1.0)
    request = validate_request(model, config)
    cond, null = encode_request(request, ["a cat"])
    assert null is None
    loaded = load_transformer(model, mesh=request.mesh, dtype="float32")
    experiment = released_experiment(request, loaded, cond, null)
    x0 = noise(jax.random.key(0), jnp.arange(1), request.latents.event_shape)
    expected = jax.jit(
        lambda params, x0, cond: sample(
            guided(experiment, params, 1.0),
            x0,
            cond,
            solver=ODE_SOLVERS[solver](),
            steps=request.steps,
        )
    )(loaded.params, x0, cond)
    found = generate(model, ["a cat"], config)
    # The two programs round differently: a step at the edge of the tolerance may go either way.
    assert abs(int(found.nfe[0]) / int(expected.nfe[0]) - 1.0) < (0.05 if steps is None else 1e-9)
    assert relative_error(found.latents, np.asarray(expected.x1)) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "steps"), [("spark", None), ("stochastic_heun", 2)])
def test_solvers_of_the_sde_arrive(solver, steps):
    model = open_model(GOLDEN / PIPELINES[1])
    config = replace(SMALL, solver=solver, num_steps=steps, rtol=0.1, atol=0.1)
    found = generate(model, ["a cat"], config)
    assert found.succeeded.all()
    other = generate(model, ["a cat"], replace(config, solver="euler", num_steps=8))
    assert relative_error(found.latents, other.latents) > 0.1


@pytest.mark.parametrize(("scale", "said"), [(0.0, 1), (0.5, 1), (1.0, 0)])
def test_guidance_of_one_or_less_is_none(scale, said, heard):
    model = open_model(GOLDEN / PIPELINES[0])
    request = validate_request(model, replace(SMALL, guidance=scale), heard)
    _, null = encode_request(request, ["a cat"])
    assert null is None
    assert request.guidance == 1.0
    effect = f"guidance {scale:g} has no effect: this model needs a scale above 1"
    assert heard.lines == [effect] * said


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0, 3.5])
def test_a_model_with_guidance_as_an_input_takes_any_scale_as_it_is(scale, heard):
    model = open_model(GOLDEN / PIPELINES[1])
    request = validate_request(model, replace(SMALL, guidance=scale), heard)
    cond, null = encode_request(request, ["a cat"])
    assert (request.guidance, null, heard.lines) == (scale, None, [])
    assert condition(request, cond, np.zeros(2, int)).guidance.tolist() == [scale] * 2


@pytest.mark.slow
def test_a_model_without_guidance_takes_0_and_1_which_have_no_effect(tmp_path, heard):
    """As diffusers' example of FLUX.1-schnell, which gives guidance_scale=0.0."""
    model = open_model(without_guidance(tmp_path))
    found = [
        generate(model, ["a cat"], replace(SMALL, guidance=scale), progress=heard)
        for scale in (None, 0.0, 1.0)
    ]
    lines = [line for line in heard.lines if "guidance" in line]
    effect = "has no effect: this model has no guidance (schnell)"
    assert lines == [f"guidance 0 {effect}", f"guidance 1 {effect}"]
    for other in found[1:]:
        np.testing.assert_array_equal(other.latents, found[0].latents)


@pytest.mark.parametrize(("scale", "end"), [(0, "reached"), (1, "reached"), (0.5, "got 0.5")])
def test_a_comparison_takes_the_guidance_that_a_picture_takes(
    scale, end, tmp_path, capsys, monkeypatch
):
    def reached(*_, **__):
        raise ValueError("reached")

    monkeypatch.setattr("fmjax.jobs.released.compare_prompt.validate_model", reached)
    code = run(
        "compare",
        schnell(tmp_path),
        "a cat",
        "--picture.guidance",
        scale,
        "--picture.height",
        32,
        "--picture.width",
        32,
        "--output",
        tmp_path,
    )
    said = capsys.readouterr()
    assert code == 2
    assert said.err.endswith(f"{end}\n")
    assert (f"guidance {scale} has no effect" in said.out) == (end == "reached")


def test_what_a_schedulers_file_leaves_out_is_as_diffusers_has_it():
    whole = open_model(GOLDEN / PIPELINES[1]).config_json("scheduler")
    short = {name: value for name, value in whole.items() if "seq_len" not in name}
    for metadata in (whole, short):
        found = released_sigmas(metadata, 4, 96, to_one_step=True)
        np.testing.assert_allclose(found, released_sigmas(whole, 4, 96, to_one_step=True))
    with pytest.raises(ValueError, match="must have stochastic_sampling false, got True"):
        released_sigmas(whole | {"stochastic_sampling": True}, 4, 96, to_one_step=True)


@pytest.mark.slow
def test_a_prompt_that_is_too_long_is_cut_with_a_warning(heard):
    model = open_model(GOLDEN / PIPELINES[0])
    long = "a photo of a cat " * 40 + "and a dog"
    generate(model, [long], SMALL, progress=heard)
    warnings = [line for line in heard.lines if line.startswith("warning: ")]
    assert len(warnings) == 3
    assert "text_encoder takes 77 tokens; the prompt 'a photo of a cat" in warnings[0]


@pytest.mark.slow
def test_a_model_without_its_third_encoder_does_without(tmp_path):
    folder = shutil.copytree(GOLDEN / PIPELINES[0], tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(folder / "text_encoder_3")
    text, shape = encoding.encode_prompts(
        open_model(folder), ["a cat"], mesh=validate_request(open_model(folder), SMALL).mesh
    )
    assert text.tokens.shape == (1, 77 + 256, 64)
    np.testing.assert_array_equal(text.tokens[:, 77:], 0)
    assert len(shape.parts) == 3
    assert generate(open_model(folder), ["a cat"], SMALL).succeeded.all()


@pytest.mark.slow
def test_noise_of_a_file_is_named_in_the_place_of_a_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = json.loads((GOLDEN / PIPELINES[1] / "io.json").read_text())
    sizes = ["--height", asked["height"], "--width", asked["width"], "--steps", 1]
    noise = ["--latents", GOLDEN / PIPELINES[1] / "io.npz"]
    assert run("generate", GOLDEN / PIPELINES[1], "a cat", *sizes, *noise) == 0
    metadata = json.loads(Image.open("pictures/a-cat-latentsio-npz.png").text["fmjax"])
    assert metadata["latents"] == "io.npz"
    assert "seed" not in metadata


@pytest.mark.slow
def test_prompts_of_a_file_and_several_pictures_have_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a photo of a cat\n\nthe lazy dog, Ünïcode!\n")
    code = run(
        "generate",
        GOLDEN / PIPELINES[1],
        "--prompts",
        "prompts.txt",
        "--height",
        32,
        "--width",
        32,
        "--steps",
        1,
        "--num-images",
        2,
        "--seed",
        3,
    )
    assert code == 0
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == [
        "a-photo-of-a-cat-seed3-0.png",
        "a-photo-of-a-cat-seed3-1.png",
        "the-lazy-dog-ünïcode-seed3-2.png",
        "the-lazy-dog-ünïcode-seed3-3.png",
    ]


def schnell(tmp_path):
    folder = shutil.copytree(GOLDEN / PIPELINES[1], tmp_path / "schnell")
    path = folder / "transformer" / "config.json"
    metadata = json.loads(path.read_text()) | {"guidance_embeds": False}
    path.write_text(json.dumps(metadata))
    return folder


def without_guidance(tmp_path):
    """A pipeline without guidance whose weights fit, too."""
    folder = schnell(tmp_path)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file({name: a for name, a in tensors.items() if "guidance" not in name}, path)
    return folder


def without(part):
    def made(tmp_path):
        folder = shutil.copytree(GOLDEN / PIPELINES[0], tmp_path / "model")
        shutil.rmtree(folder / part)
        return folder

    return made


def of_another_kind(tmp_path):
    folder = shutil.copytree(GOLDEN / PIPELINES[0], tmp_path / "model")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "PixArtPipeline"}))
    return folder


def of_the_wrong_part(tmp_path):
    folder = shutil.copytree(GOLDEN / PIPELINES[0], tmp_path / "model")
    shutil.rmtree(folder / "text_encoder_3")
    shutil.copytree(folder / "text_encoder", folder / "text_encoder_3")
    return folder


def damaged(name, data=b"x"):
    """With a file whose content is something else."""

    def made(tmp_path):
        folder = shutil.copytree(GOLDEN / PIPELINES[0], tmp_path / "model")
        (folder / name).write_bytes(data)
        return folder

    return made


def with_setting(part, **settings):
    def made(tmp_path):
        folder = shutil.copytree(GOLDEN / PIPELINES[0], tmp_path / "model")
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return folder

    return made


def without_setting(part, name):
    def made(tmp_path):
        folder = with_setting(part)(tmp_path)
        path = folder / part / "config.json"
        metadata = json.loads(path.read_text())
        del metadata[name]
        path.write_text(json.dumps(metadata))
        return folder

    return made


def pickled(tmp_path):
    folder = shutil.copytree(GOLDEN / PIPELINES[0], tmp_path / "model")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    return folder


WEIGHTS = "diffusion_pytorch_model.safetensors"


def sd3(tmp_path):
    return GOLDEN / PIPELINES[0]


def flux(tmp_path):
    return GOLDEN / PIPELINES[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (sd3, ["--height", 33], "height must be divisible by 4, the autoencoder's 2 times the"),
        (flux, ["--width", 50], "width must be divisible by 4, the autoencoder's 2 times the"),
        (sd3, ["--height", 4096], "size must be at most 96 for this model, got 4096"),
        (schnell, ["--guidance", 3], "guidance must be 0 or 1, or left out, for a model without"),
        (schnell, ["--guidance", 0.5], "guidance must be 0 or 1, or left out, for a model without"),
        (sd3, ["--guidance", "inf"], "guidance must be finite, got inf"),
        (sd3, ["--lora-scale", "nan"], "lora_scale must be finite, got nan"),
        (flux, ["--negative", "x"], "negative must be left out for FLUX"),
        (without("vae"), [], "must hold vae/config.json, got no such file"),
        (without("tokenizer_2"), [], "must hold tokenizer_2/tokenizer_config.json"),
        (of_the_wrong_part, [], "must name the class T5EncoderModel, got CLIPTextModelWi"),
        (sd3, ["--output", "picture.jpg"], "output must end in .png, got picture.jpg"),
        (sd3, ["--lora", "nowhere"], "lora must exist, got nowhere"),
        (of_another_kind, [], "must name the class StableDiffusion3Pipeline or FluxPipeline"),
        (lambda path: path / "nowhere", [], "model folder must exist, got "),
        (sd3, ["--solver", "heun"], "num_steps must be given for heun, which estimates no error"),
        (sd3, ["--solver", "ddim", "--steps", 4], "solver must be one of"),
        (sd3, ["--negative", "x", "--guidance", 1], "guidance must be above 1 with a negative pr"),
        (sd3, ["--output", "."], "output must be the name of a file, got ."),
        (damaged(f"transformer/{WEIGHTS}"), [], f"{WEIGHTS} must be a complete safetensors file"),
        (damaged(f"vae/{WEIGHTS}"), [], f"vae/{WEIGHTS} must be a complete safetensors file, got"),
        (
            pickled,
            [],
            "vae must hold safetensors, got diffusion_pytorch_model.bin: a pickle, which",
        ),
        (damaged("tokenizer_2/merges.txt"), [], "must hold two tokens per line, got ['x']"),
        (damaged("tokenizer/tokenizer.json", b"{}"), [], "tokenizer must hold a tokenizer, got"),
        (
            without_setting("transformer", "num_layers"),
            [],
            "a value at num_layers, got none",
        ),
        (without_setting("transformer", "joint_attention_dim"), [], "a value at joint_attention_"),
        (
            with_setting("transformer", in_channels=8, out_channels=8),
            [],
            "latent channels, like the",
        ),
        (with_setting("transformer", joint_attention_dim=72), [], "the width of the tokens of"),
        (with_setting("transformer", pooled_projection_dim=2), [], "the width of the pooled vec"),
        (with_setting("transformer", out_channels=None), ["--height", 33], "height must be d"),
        (sd3, ["--max-tokens", 1024], "max_tokens must be at most"),
        (sd3, ["--latents", "missing.npz"], "must be a valid .npz file"),
        (sd3, ["--steps", 0], "num_steps must lie in [1, 16777216], got 0"),
        (sd3, ["--num-stepz", 4], "did you mean --num-steps"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    make, options, message, tmp_path, capsys, monkeypatch
):
    """Before any weights are read."""
    monkeypatch.setattr(components, "load_params", None)
    sizes = ["--height", 32, "--width", 32]
    assert run("generate", make(tmp_path), "a cat", *sizes, *options) == 2
    said = capsys.readouterr().err
    assert said.startswith("fmjax: error: ")
    assert message in said
    assert said.count("\n") == 1


def test_noise_of_another_size_is_refused(tmp_path, capsys):
    np.savez(tmp_path / "noise.npz", init_latents=np.zeros((1, 4, 8, 8), np.float32))
    code = run(
        "generate",
        GOLDEN / PIPELINES[0],
        "a cat",
        "--height",
        32,
        "--width",
        32,
        "--latents",
        tmp_path / "noise.npz",
    )
    assert code == 2
    assert "init_latents must have shape (images, 4, 16, 16), got" in capsys.readouterr().err


def test_for_a_run_the_command_that_takes_prompts_is_named(tmp_path, capsys):
    (tmp_path / "model.json").write_text("{}")
    assert run("generate", tmp_path, "a cat") == 2
    assert f"is a run, not a released model; use fmjax sample {tmp_path}" in capsys.readouterr().err


def test_a_prompt_is_asked_for(capsys):
    assert run("generate", GOLDEN / PIPELINES[0]) == 2
    assert "needs a prompt after the folder, or --prompts FILE" in capsys.readouterr().err
