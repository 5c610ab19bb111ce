"""Tests of encoding captioned images with a released model and training on the result."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fmjax._arrays import Text, TextPart, TextShape
from fmjax._json import check_json
from fmjax.config import Config, LossConfig, build
from fmjax.data import CaptionedImages, EncodedData, batches
from fmjax.losses import drop_parts
from fmjax.networks import MMDiTConfig
from fmjax.pretrained.folder import open_model
from fmjax.pretrained.prompts import encode_prompts
from fmjax.sharding import make_mesh
from tests.cli.test_cli import run
from tests.golden_models import GOLDEN, PIPELINES, loaded

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Nine captioned images of 40 x 36 pixels."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(9):
        pixels = rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a photo of the dog {index}")
    return folder


@pytest.fixture(scope="module", params=PIPELINES)
def encoded(request, images, tmp_path_factory):
    """The model name, output folder and options of an encode command."""
    output = tmp_path_factory.mktemp("encoded") / "out"
    options = [
        "--size",
        32,
        "--test-every",
        3,
        "--batch-size",
        4,
        "--examples-per-shard",
        4,
        "--dtype",
        "float32",
        "--output",
        output,
    ]
    assert run("encode", GOLDEN / request.param, images, *options) in (0, None)
    return request.param, output, options


def test_records_match_the_encoders_and_the_autoencoder(encoded, images):
    name, output, _ = encoded
    model, data = open_model(GOLDEN / name), EncodedData(str(output))
    source = CaptionedImages(str(images), 32, 3)
    vae, params = loaded(f"{name}/vae")
    for split in ("train", "test"):
        encoded_data, images_data = data.load(split), source.load(split)
        batch = encoded_data.examples(np.arange(len(images_data))[::-1])
        captions = images_data.captions.texts[::-1]
        mesh = make_mesh(devices=jax.devices()[:1])
        text, shape = encode_prompts(model, captions, mesh=mesh)
        assert encoded_data.conditions == shape
        np.testing.assert_allclose(batch.cond.tokens, text.tokens, atol=1e-4)
        np.testing.assert_allclose(batch.cond.pooled, text.pooled, atol=1e-4)
        mean, _ = jax.jit(vae.network.encode)(params, images_data.points()[::-1])
        np.testing.assert_allclose(batch.x1, vae.config.scaled(mean), atol=1e-4)
        np.testing.assert_array_equal(encoded_data.points(np.array([0])), batch.x1[-1:])


def test_interrupted_encoding_resumes_with_missing_shards(encoded, images, capsys):
    name, output, options = encoded
    shards = sorted((output / "train").glob("*.array_record"))
    assert len(shards) > 1
    before = [shard.read_bytes() for shard in shards]
    shards[1].unlink()
    run("encode", GOLDEN / name, images, *options)
    assert [shard.read_bytes() for shard in shards] == before
    times = [shard.stat().st_mtime_ns for shard in shards]
    assert times[1] == max(times)
    assert "encoded 4 examples to" in capsys.readouterr().out
    run("encode", GOLDEN / name, images, *options)
    assert "encoded 0 examples to" in capsys.readouterr().out


def test_changed_images_with_the_same_names_are_refused(encoded, images, capsys):
    name, _, options = encoded
    before = (images / "3.png").read_bytes()
    Image.new("RGB", (40, 36)).save(images / "3.png")
    try:
        assert run("encode", GOLDEN / name, images, *options) == 2
    finally:
        (images / "3.png").write_bytes(before)
    assert "images" in capsys.readouterr().err


def test_encoder_dropout_gives_finite_losses_on_encoded_data(encoded):
    _, output, _ = encoded
    data = EncodedData(str(output)).load("train")
    config = Config(
        name="x",
        network=MMDiTConfig(num_heads=2, head_width=8, num_layers=1),
        loss=LossConfig(label_drop=0.0, encoder_drop=0.5),
    )
    experiment = build(config, data.event_shape, data.conditions)
    batch = jax.tree.map(jnp.asarray, next(batches(data, batch_size=8)))
    examples = experiment.objective.make_examples(jax.random.key(0), batch)
    dropped = [not np.any(row) for row in examples.cond.pooled]
    assert 0 < sum(dropped) < 8
    params = experiment.model.net.init(jax.random.key(1))
    losses = jax.jit(experiment.objective.loss)(params, examples)
    assert np.isfinite(losses).all()


PARTS = (
    TextPart((0, 2), (0, 3), (0, 2)),
    TextPart((0, 2), (3, 4), (2, 3)),
    TextPart((2, 5), (0, 6), (0, 0)),
)


def test_encoders_are_dropped_independently():
    """The tolerance is 0.04, five standard errors of a fraction of 4,000 examples."""
    num_examples = 4000
    text = Text(np.ones((num_examples, 5, 6), np.float32), np.ones((num_examples, 3), np.float32))
    result = jax.jit(lambda key, text: drop_parts(key, text, PARTS, 0.464))(jax.random.key(0), text)
    dropped = np.stack(
        [
            np.asarray(
                result.tokens[:, slice(*part.tokens), slice(*part.channels)].sum((1, 2)) == 0
            )
            for part in PARTS
        ]
    )
    np.testing.assert_allclose(dropped.mean(axis=1), 0.464, atol=0.04)
    assert abs(dropped.all(axis=0).mean() - 0.464**3) < 0.04
    np.testing.assert_array_equal(result.pooled[:, :2].sum(axis=1) == 0, dropped[0])
    np.testing.assert_array_equal(result.pooled[:, 2] == 0, dropped[1])
    # These channels belong to no encoder.
    np.testing.assert_array_equal(result.tokens[:, :2, 4:], 1.0)
    values = [value for value in np.unique(np.asarray(result.tokens))]
    assert values == [0.0, 1.0]


def test_text_shape_json_round_trip_is_exact():
    shape = TextShape(5, 6, 3, PARTS)
    assert check_json(json.loads(json.dumps(shape.as_json())), TextShape, "text") == shape


def test_encoder_dropout_without_known_encoders_is_refused():
    config = Config(name="x", network=MMDiTConfig(), loss=LossConfig(encoder_drop=0.1))
    with pytest.raises(ValueError, match="encoder_drop must be 0 for data without a known"):
        build(config, (8, 8, 4), TextShape(5, 6, 3))
    text = Text(np.ones((2, 5, 6), np.float32), np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="encoder_drop must be 0 for text without a known"):
        drop_parts(jax.random.key(0), text, (), 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", 31], "height must be divisible by 4"),
        (["--size", "32", "--examples-per-shard", "0"], "examples_per_shard must be at least 1"),
    ],
)
def test_invalid_encode_options_are_refused(options, message, images, tmp_path, capsys):
    arguments = [str(option).format(images=images) for option in options]
    arguments += [] if "--output" in arguments else ["--output", str(tmp_path / "out")]
    assert run("encode", GOLDEN / PIPELINES[0], images, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_folder_without_encoded_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="data.folder must exist, got "):
        EncodedData(str(tmp_path / "none")).load("train")
    with pytest.raises(ValueError, match="data.folder must hold train, written by fmjax encode"):
        EncodedData(str(tmp_path)).load("train")
