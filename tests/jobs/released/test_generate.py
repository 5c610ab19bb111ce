"""Tests of generating images with released models against diffusers."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from fmjax.config import ODE_SOLVERS
from fmjax.config.generate import GenerateConfig
from fmjax.jobs.released import request as request_module
from fmjax.jobs.released.generate import (
    condition,
    decode_latents,
    encode_request,
    generate,
    released_model,
)
from fmjax.jobs.released.request import validate_request
from fmjax.pretrained import components, prompts as encoding
from fmjax.pretrained.folder import open_model
from fmjax.pretrained.pipeline import latents_of, load_transformer, read_latents, released_times
from fmjax.pretrained.time_grid import released_sigmas
from fmjax.runs.sampling.batches import sample_source_points
from fmjax.sharding import MeshConfig
from fmjax.solvers import ClassifierFree, Euler, FixedSteps, sample
from tests.cli.test_cli import run
from tests.golden_models import GOLDEN, PIPELINES, golden_io, relative_error
from tests.released import on_one_device

SETTINGS = GenerateConfig(height=32, width=32, num_steps=2, mesh=MeshConfig(1, 1, -1))


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Run on one device unless the mesh config fixes all axes."""
    on_one_device(monkeypatch, request_module)


def reference_call(folder):
    """Prompt and config of the reference call of diffusers."""
    reference = json.loads((GOLDEN / folder / "io.json").read_text())
    config = GenerateConfig(
        height=reference["height"],
        width=reference["width"],
        num_steps=reference["num_inference_steps"],
        guidance=reference["guidance_scale"],
        negative=reference["negative_prompt"] or None,
    )
    return reference["prompt"], config


@pytest.mark.parametrize("folder", PIPELINES)
def test_sigmas_match_diffusers(folder):
    model, (_, config), io = open_model(GOLDEN / folder), reference_call(folder), golden_io(folder)
    latents = latents_of(model, config.height, config.width)
    times = released_times(model, latents, config.num_steps)
    np.testing.assert_allclose(1.0 - times, io["sigmas"], atol=1e-7)
    np.testing.assert_allclose(1000 * (1.0 - times[:-1]), io["timesteps"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("folder", PIPELINES)
def test_latents_of_every_step_and_image_match_diffusers(folder):
    """The Euler trajectory is compared at all steps; errors are about 1e-5."""
    model, (prompt, config), io = (
        open_model(GOLDEN / folder),
        reference_call(folder),
        golden_io(folder),
    )
    request, packed = validate_request(model, config), folder.startswith("flux")
    cond, null = encode_request(request, [prompt])
    loaded = load_transformer(model, mesh=request.mesh, dtype="float32")
    transformer = released_model(request, loaded, cond, null)
    scale = 1.0 if null is None else request.guidance
    times = request.steps.times

    @jax.jit
    def solve(params, x0, cond):
        field = ClassifierFree(scale)(transformer).velocity_fn(params)
        steps = FixedSteps(times)
        return sample(field, x0, cond, solver=Euler(), steps=steps, save_at=jnp.asarray(times[1:]))

    x0 = read_latents(io, request.latents, packed)
    solution = solve(loaded.params, x0, condition(request, cond, np.zeros(1, int)))
    for actual, expected in zip(solution.stats.trajectory, io["latents"], strict=True):
        expected = read_latents({"init_latents": expected}, request.latents, packed)
        assert relative_error(actual, expected) < 1e-4
    images = decode_latents(request, np.asarray(solution.x1))
    assert relative_error(np.clip((images + 1) / 2, 0, 1), io["image"]) < 1e-4


@pytest.mark.parametrize("folder", PIPELINES)
def test_generate_command_matches_the_diffusers_image(folder, tmp_path, capsys):
    reference = json.loads((GOLDEN / folder / "io.json").read_text())
    negative = ["--negative", reference["negative_prompt"]] if reference["negative_prompt"] else []
    output = tmp_path / "out" / "picture.png"
    code = run(
        "generate",
        GOLDEN / folder,
        reference["prompt"],
        "--height",
        reference["height"],
        "--width",
        reference["width"],
        "--steps",
        reference["num_inference_steps"],
        "--guidance",
        reference["guidance_scale"],
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
    assert picture.text["prompt"] == metadata["prompt"] == reference["prompt"]
    assert metadata["num_steps"] == reference["num_inference_steps"]
    assert metadata["guidance"] == reference["guidance_scale"]
    assert f"wrote {output}" in capsys.readouterr().out


@pytest.mark.slow
def test_encoders_are_freed_before_the_transformer_is_loaded(monkeypatch):
    model = open_model(GOLDEN / PIPELINES[0])
    recorded = {}
    from fmjax.jobs.released import generate as module

    def recording_load(*args, **kwargs):
        recorded["bytes"] = sum(array.nbytes for array in jax.live_arrays() if array.ndim >= 2)
        return load_transformer(*args, **kwargs)

    before = sum(array.nbytes for array in jax.live_arrays() if array.ndim >= 2)
    monkeypatch.setattr(module, "load_transformer", recording_load)
    generate(model, ["a cat"], SETTINGS)
    smallest = (model.root / "text_encoder" / "model.safetensors").stat().st_size
    assert recorded["bytes"] - before < smallest / 4


@pytest.mark.slow
@pytest.mark.parametrize("folder", PIPELINES)
def test_images_do_not_depend_on_the_mesh(folder):
    model = open_model(GOLDEN / folder)
    prompts = ["a cat", "a red fox"]
    meshes = [MeshConfig(1, 1, -1), MeshConfig(2, 2, 2)]
    images = [
        generate(model, prompts, replace(SETTINGS, mesh=mesh, num_images=2)).images
        for mesh in meshes
    ]
    assert images[0].shape == (4, 32, 32, 3)
    assert relative_error(images[1], images[0]) < 1e-4
    assert np.abs(images[0][0] - images[0][1]).max() > 0.1  # Images have different noise.


@pytest.mark.slow
def test_image_depends_only_on_its_seed_and_index():
    model = open_model(GOLDEN / PIPELINES[1])
    config = replace(SETTINGS, num_images=3, batch_size=2)
    batched = generate(model, ["a cat"], config).images
    unbatched = generate(model, ["a cat"], replace(config, batch_size=1)).images
    np.testing.assert_allclose(batched, unbatched, atol=1e-4)
    other_seed = generate(model, ["a cat"], replace(config, seed=1)).images
    assert np.abs(other_seed - batched).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "steps"), [("heun", 3), ("tsit5", None)])
def test_generate_matches_library_solvers(solver, steps):
    """Steps are fixed on the grid of the model, or adaptive."""
    model = open_model(GOLDEN / PIPELINES[0])
    config = replace(SETTINGS, solver=solver, num_steps=steps, rtol=1e-5, atol=1e-5, guidance=1.0)
    request = validate_request(model, config)
    cond, null = encode_request(request, ["a cat"])
    assert null is None
    loaded = load_transformer(model, mesh=request.mesh, dtype="float32")
    transformer = released_model(request, loaded, cond, null)
    event_shape = request.latents.event_shape
    x0 = sample_source_points(transformer.process, jax.random.key(0), jnp.arange(1), event_shape)
    expected = jax.jit(
        lambda params, x0, cond: sample(
            transformer.velocity_fn(params),
            x0,
            cond,
            solver=ODE_SOLVERS[solver](),
            steps=request.steps,
        )
    )(loaded.params, x0, cond)
    result = generate(model, ["a cat"], config)
    # The two programs round differently, so that adaptive solvers may accept different steps.
    assert abs(int(result.nfe[0]) / int(expected.nfe[0]) - 1.0) < (0.05 if steps is None else 1e-9)
    assert relative_error(result.latents, np.asarray(expected.x1)) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "steps"), [("spark", None), ("stochastic_heun", 2)])
def test_sde_solvers_succeed(solver, steps):
    model = open_model(GOLDEN / PIPELINES[1])
    config = replace(SETTINGS, solver=solver, num_steps=steps, rtol=0.1, atol=0.1)
    result = generate(model, ["a cat"], config)
    assert result.succeeded.all()
    ode_result = generate(model, ["a cat"], replace(config, solver="euler", num_steps=8))
    assert relative_error(result.latents, ode_result.latents) > 0.1


@pytest.mark.parametrize(("scale", "num_warnings"), [(0.0, 1), (0.5, 1), (1.0, 0)])
def test_guidance_of_at_most_one_is_disabled(scale, num_warnings, recorder):
    model = open_model(GOLDEN / PIPELINES[0])
    request = validate_request(model, replace(SETTINGS, guidance=scale), recorder)
    _, null = encode_request(request, ["a cat"])
    assert null is None
    assert request.guidance == 1.0
    warning = f"guidance {scale:g} has no effect: this model needs a scale above 1"
    assert recorder.lines == [warning] * num_warnings


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0, 3.5])
def test_guidance_input_takes_any_scale(scale, recorder):
    model = open_model(GOLDEN / PIPELINES[1])
    request = validate_request(model, replace(SETTINGS, guidance=scale), recorder)
    cond, null = encode_request(request, ["a cat"])
    assert (request.guidance, null, recorder.lines) == (scale, None, [])
    assert condition(request, cond, np.zeros(2, int)).guidance.tolist() == [scale] * 2


@pytest.mark.slow
def test_guidance_0_and_1_have_no_effect_without_guidance_input(tmp_path, recorder):
    """The FLUX.1-schnell example of diffusers passes guidance_scale=0.0."""
    model = open_model(loadable_schnell(tmp_path))
    results = [
        generate(model, ["a cat"], replace(SETTINGS, guidance=scale), progress=recorder)
        for scale in (None, 0.0, 1.0)
    ]
    lines = [line for line in recorder.lines if "guidance" in line]
    effect = "has no effect: this model has no guidance (schnell)"
    assert lines == [f"guidance 0 {effect}", f"guidance 1 {effect}"]
    for result in results[1:]:
        np.testing.assert_array_equal(result.latents, results[0].latents)


@pytest.mark.parametrize(("scale", "end"), [(0, "reached"), (1, "reached"), (0.5, "got 0.5")])
def test_compare_validates_guidance_like_generate(scale, end, tmp_path, capsys, monkeypatch):
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
    output = capsys.readouterr()
    assert code == 2
    assert output.err.endswith(f"{end}\n")
    assert (f"guidance {scale} has no effect" in output.out) == (end == "reached")


def test_missing_scheduler_settings_use_diffusers_defaults():
    full = open_model(GOLDEN / PIPELINES[1]).config_json("scheduler")
    partial = {name: value for name, value in full.items() if "seq_len" not in name}
    for metadata in (full, partial):
        sigmas = released_sigmas(metadata, 4, 96, to_one_step=True)
        np.testing.assert_allclose(sigmas, released_sigmas(full, 4, 96, to_one_step=True))
    with pytest.raises(ValueError, match="must have stochastic_sampling false, got True"):
        released_sigmas(full | {"stochastic_sampling": True}, 4, 96, to_one_step=True)


@pytest.mark.slow
def test_long_prompt_is_truncated_with_a_warning(recorder):
    model = open_model(GOLDEN / PIPELINES[0])
    long = "a photo of a cat " * 40 + "and a dog"
    generate(model, [long], SETTINGS, progress=recorder)
    warnings = [line for line in recorder.lines if line.startswith("warning: ")]
    assert len(warnings) == 3
    assert "text_encoder takes 77 tokens; the prompt 'a photo of a cat" in warnings[0]


@pytest.mark.slow
def test_model_works_without_its_third_encoder(tmp_path):
    folder = shutil.copytree(GOLDEN / PIPELINES[0], tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(folder / "text_encoder_3")
    text, shape = encoding.encode_prompts(
        open_model(folder), ["a cat"], mesh=validate_request(open_model(folder), SETTINGS).mesh
    )
    assert text.tokens.shape == (1, 77 + 256, 64)
    np.testing.assert_array_equal(text.tokens[:, 77:], 0)
    assert len(shape.parts) == 3
    assert generate(open_model(folder), ["a cat"], SETTINGS).succeeded.all()


@pytest.mark.slow
def test_noise_file_replaces_the_seed_in_name_and_metadata(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reference = json.loads((GOLDEN / PIPELINES[1] / "io.json").read_text())
    sizes = ["--height", reference["height"], "--width", reference["width"], "--steps", 1]
    noise_options = ["--latents", GOLDEN / PIPELINES[1] / "io.npz"]
    assert run("generate", GOLDEN / PIPELINES[1], "a cat", *sizes, *noise_options) == 0
    metadata = json.loads(Image.open("pictures/a-cat-latentsio-npz.png").text["fmjax"])
    assert metadata["latents"] == "io.npz"
    assert "seed" not in metadata


@pytest.mark.slow
def test_images_of_a_prompts_file_have_distinct_names(tmp_path, monkeypatch):
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
    names = sorted(file.name for file in (tmp_path / "pictures").iterdir())
    assert names == [
        "a-photo-of-a-cat-seed3-0.png",
        "a-photo-of-a-cat-seed3-1.png",
        "the-lazy-dog-ünïcode-seed3-2.png",
        "the-lazy-dog-ünïcode-seed3-3.png",
    ]


def schnell(tmp_path):
    """A FLUX pipeline with a config, but not weights, of FLUX.1-schnell."""
    folder = shutil.copytree(GOLDEN / PIPELINES[1], tmp_path / "schnell")
    file = folder / "transformer" / "config.json"
    metadata = json.loads(file.read_text()) | {"guidance_embeds": False}
    file.write_text(json.dumps(metadata))
    return folder


def loadable_schnell(tmp_path):
    """A FLUX.1-schnell pipeline whose weights match its config."""
    folder = schnell(tmp_path)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({name: a for name, a in tensors.items() if "guidance" not in name}, file)
    return folder


def without(component):
    def make_folder(tmp_path):
        folder = shutil.copytree(GOLDEN / PIPELINES[0], tmp_path / "model")
        shutil.rmtree(folder / component)
        return folder

    return make_folder


def unknown_pipeline(tmp_path):
    folder = shutil.copytree(GOLDEN / PIPELINES[0], tmp_path / "model")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "PixArtPipeline"}))
    return folder


def wrong_text_encoder(tmp_path):
    folder = shutil.copytree(GOLDEN / PIPELINES[0], tmp_path / "model")
    shutil.rmtree(folder / "text_encoder_3")
    shutil.copytree(folder / "text_encoder", folder / "text_encoder_3")
    return folder


def damaged(name, content=b"x"):
    """Return a function that copies the SD3 pipeline and overwrites one file."""

    def make_folder(tmp_path):
        folder = shutil.copytree(GOLDEN / PIPELINES[0], tmp_path / "model")
        (folder / name).write_bytes(content)
        return folder

    return make_folder


def with_setting(component, **settings):
    def make_folder(tmp_path):
        folder = shutil.copytree(GOLDEN / PIPELINES[0], tmp_path / "model")
        file = folder / component / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        return folder

    return make_folder


def without_setting(component, name):
    def make_folder(tmp_path):
        folder = with_setting(component)(tmp_path)
        file = folder / component / "config.json"
        metadata = json.loads(file.read_text())
        del metadata[name]
        file.write_text(json.dumps(metadata))
        return folder

    return make_folder


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
        (wrong_text_encoder, [], "must name the class T5EncoderModel, got CLIPTextModelWi"),
        (sd3, ["--output", "picture.jpg"], "output must end in .png, got picture.jpg"),
        (sd3, ["--lora", "nowhere"], "lora must exist, got nowhere"),
        (unknown_pipeline, [], "must name the class StableDiffusion3Pipeline or FluxPipeline"),
        (lambda folder: folder / "nowhere", [], "model folder must exist, got "),
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
def test_invalid_requests_are_refused_in_one_line(
    make, options, message, tmp_path, capsys, monkeypatch
):
    """Requests are refused before weights are loaded."""
    monkeypatch.setattr(components, "load_params", None)
    sizes = ["--height", 32, "--width", 32]
    assert run("generate", make(tmp_path), "a cat", *sizes, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("fmjax: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_noise_file_of_another_shape_is_refused(tmp_path, capsys):
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


def test_error_for_a_run_names_the_sample_command(tmp_path, capsys):
    (tmp_path / "model.json").write_text("{}")
    assert run("generate", tmp_path, "a cat") == 2
    assert f"is a run, not a released model; use fmjax sample {tmp_path}" in capsys.readouterr().err


def test_missing_prompt_is_refused(capsys):
    assert run("generate", GOLDEN / PIPELINES[0]) == 2
    assert "needs a prompt after the folder, or --prompts FILE" in capsys.readouterr().err
