"""Tests that sizes beyond any machine are rejected before tracing and writing."""

import dataclasses
import math
import types
import typing

import jax
import pytest

from fmjax import _memory
from fmjax._memory import host_memory, require_device_memory, require_host_memory
from fmjax.config import (
    CompareConfig,
    Config,
    EvaluationConfig,
    MeanFlowConfig,
    PlanConfig,
    ReflowConfig,
    Sampling,
    ShortcutConfig,
    StudyConfig,
    TrainingConfig,
)
from fmjax.config.compare import ComparePromptConfig
from fmjax.config.encode import EncodeConfig
from fmjax.config.generate import GenerateConfig
from fmjax.config.invert import InvertConfig
from fmjax.config.likelihood import LikelihoodConfig
from fmjax.data import CaptionedImages, EmojiData, EncodedData, ImageFolder, ToyData
from fmjax.data.tokenizer import TokenizerConfig
from fmjax.jobs.train.train import train_folder
from fmjax.networks import (
    DiTConfig,
    FluxConfig,
    LoRAConfig,
    MLPConfig,
    MMDiTConfig,
    SequenceTransformerConfig,
    UNetConfig,
)
from fmjax.networks.text_encoders.word_encoder import TextEncoderConfig
from fmjax.paths import CosineBetas, LinearBetas
from fmjax.planning.topology import devices_of
from fmjax.sharding import MeshConfig, batch_sharding, make_mesh
from fmjax.training import OptimizerConfig

CONFIG_CLASSES = (
    CompareConfig,
    EvaluationConfig,
    TrainingConfig,
    Sampling,
    PlanConfig,
    LikelihoodConfig,
    InvertConfig,
    GenerateConfig,
    ComparePromptConfig,
    EncodeConfig,
    ToyData,
    EmojiData,
    TokenizerConfig,
    TextEncoderConfig,
    MLPConfig,
    UNetConfig,
    DiTConfig,
    SequenceTransformerConfig,
    FluxConfig,
    MMDiTConfig,
    LoRAConfig,
    OptimizerConfig,
    MeshConfig,
    ShortcutConfig,
    MeanFlowConfig,
    LinearBetas,
    CosineBetas,
)


def invalid_numbers():
    """Yield class, name and invalid value of every numeric field of the configs."""
    for cls in CONFIG_CLASSES:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            hint = hints[field.name]
            options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            for option in options:
                is_tuple = typing.get_origin(option) is tuple
                item = typing.get_args(option)[0] if is_tuple else option
                if item not in (int, float):
                    continue
                invalid = [2**63, 10**12] if item is int else [math.inf, math.nan, 10**400]
                invalid = invalid[:1] if field.name == "seed" else invalid
                for value in invalid:
                    repeats = max(len(typing.get_args(option)) - 1, 1)
                    entry = (value,) * repeats if is_tuple else value
                    yield cls, field.name, entry


@pytest.mark.usefixtures("unchecked")
def test_config_numbers_are_limited_to_their_type():
    cases = list(invalid_numbers())
    assert len(cases) > 250
    for cls, name, value in cases:
        try:
            cls(**{name: value})
        except ValueError as error:
            message = str(error)
        else:
            pytest.fail(f"{cls.__name__} accepts {name}={str(value)[:40]}")
        assert name in message, (cls, name)
        assert "\n" not in message, (cls, name)


def test_seeds_are_nonnegative_64_bit_integers():
    assert Sampling.of(seed=2**63 - 1).seed == 2**63 - 1
    with pytest.raises(ValueError, match=r"seed must lie in \[0, 2\*\*63\), got -1"):
        CompareConfig(seed=-1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CompareConfig(num_steps=(4,) * 10**6), "num_steps must have at most 10,000 ent"),
        (
            lambda: StudyConfig("s", (Config("a"),), (Sampling.of(),), num_seeds=10**9),
            r"num_seeds must lie in \[1, 1000\], got 1000000000",
        ),
        (lambda: MLPConfig(num_layers=10**9), r"num_layers must lie in \[0, 1024\]"),
        (lambda: UNetConfig(num_blocks=10**9), r"num_blocks must lie in \[0, 1024\]"),
        (lambda: FluxConfig(num_single=10**6), r"num_single must lie in \[0, 1024\]"),
        (lambda: MMDiTConfig(num_layers=10**9), r"num_layers must lie in \[0, 1024\]"),
        (lambda: MLPConfig(width=2**30), r"network must have at most 2\*\*40 parameters"),
        (lambda: UNetConfig(width=8, multipliers=(1, 10**9)), "network must have at most"),
        (lambda: Sampling.of(num_steps=10**9), r"num_steps must lie in \[1, 16777216\]"),
        (lambda: ImageFolder("x", size=10**9), r"size must lie in \[1, 16384\]"),
        (lambda: CaptionedImages("x", size=10**9), r"size must lie in \[1, 16384\]"),
        (lambda: EncodedData("x", event_shape=(2**63, 1, 1)), "event_shape must lie in"),
        (lambda: ReflowConfig(teacher="x", num_pairs=10**12), "num_pairs must lie in"),
        (lambda: Config("x", source_noise=math.inf), "source_noise must be finite, got inf"),
        (lambda: Sampling.of(num_samples=10**5000), "num_samples must lie in .* bits"),
    ],
)
def test_sizes_that_cannot_be_traced_are_rejected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["cpu:1000000000", "h100:70000", f"v5e:{10**300}x1"])
def test_topologies_with_too_many_devices_are_rejected(name):
    with pytest.raises(ValueError, match="topology must have at most .* devices, got "):
        devices_of(name)


def test_sizes_beyond_the_memory_are_rejected(monkeypatch):
    assert 2**28 < host_memory() < 2**50
    monkeypatch.setattr(_memory, "host_memory", lambda: 1e9)
    require_host_memory("num_samples", 1e9, "samples")
    message = r"num_samples must fit the 1\.0 GB of this machine's memory, got about 1\.5 GB of sam"
    with pytest.raises(ValueError, match=message):
        require_host_memory("num_samples", 1.5e9, "samples")
    mesh = make_mesh()  # Eight devices share the host's memory.
    sharding = batch_sharding(mesh)
    array = jax.ShapeDtypeStruct((8 * 10**6, 31), "float32", sharding=sharding)
    require_device_memory("batch_size", array, "examples")
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    array = jax.ShapeDtypeStruct((10**6, 33), "float32", sharding=replicated)
    with pytest.raises(ValueError, match=r"batch_size must fit .*, got about 1\.1 GB of examples"):
        require_device_memory("batch_size", array, "examples")


TOO_LARGE = [
    ({"network": MLPConfig(width=2**18, num_layers=4)}, "network must fit .* GB of parameters"),
    ({"training": TrainingConfig(batch_size=2**31 - 8)}, "batch_size must fit .* GB of examples"),
    ({"data": ToyData(num_examples=2**31 - 1)}, "data.num_examples must fit"),
]


@pytest.mark.parametrize(("fields", "message"), TOO_LARGE)
def test_training_beyond_the_memory_leaves_no_folder(tmp_path, monkeypatch, fields, message):
    monkeypatch.setattr(_memory, "host_memory", lambda: 16e9)
    config = Config("large", **({"data": ToyData(), "network": MLPConfig(width=16)} | fields))
    with pytest.raises(ValueError, match=message):
        train_folder(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
