"""Weights of CLIP and T5: every tensor of a file named once, and params shaped as they are."""

import jax
import numpy as np
import pytest

from fmjax._trees import flatten_dict
from fmjax.pretrained.families.clip import BUFFERS, clip_text_config, clip_text_layouts
from fmjax.pretrained.families.t5 import EMBEDDING, TIED, t5_config
from fmjax.pretrained.layouts import all_tensors
from tests.networks.text_encoders.golden_encoders import (
    CLIPS,
    T5S,
    config_json,
    encoder,
    read,
    weights,
)

FOLDERS = (*CLIPS, *T5S)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_tensor_of_a_file_is_named_once_with_its_shape(folder):
    _, layouts = encoder(folder)
    held = {name: tensor.shape for name, tensor in weights(folder).items()}
    assert all_tensors(layouts) == held
    sizes = sum(np.prod(layout.shape) for _, layout in flatten_dict(layouts).items())
    assert sizes == sum(np.prod(shape) for shape in held.values())
    assert EMBEDDING in held or folder in CLIPS
    assert not {TIED, *BUFFERS} & set(held)


@pytest.mark.parametrize("folder", FOLDERS)
def test_parameters_read_from_a_file_are_shaped_as_those_drawn(folder):
    net, layouts = encoder(folder)
    drawn = jax.eval_shape(net.init, jax.random.key(0))
    assert jax.tree.map(np.shape, read(layouts, weights(folder))) == jax.tree.map(np.shape, drawn)


@pytest.mark.parametrize("folder", FOLDERS)
def test_tensor_parallel_axes_are_of_parameters_that_there_are(folder):
    net, layouts = encoder(folder)
    shapes = {name: layout.shape for name, layout in flatten_dict(layouts).items()}
    assert len(net.tensor_axes) >= 6
    for name, axis in net.tensor_axes.items():
        assert len(shapes[name]) >= -axis


def test_the_prefix_is_before_all_names_but_the_projections():
    config = clip_text_config(config_json("sd3-pipeline-tiny/text_encoder"))
    bare = all_tensors(clip_text_layouts(config, prefix=""))
    full = all_tensors(clip_text_layouts(config))
    own = "text_projection.weight"
    assert {f"text_model.{name}" for name in bare if name != own} | {own} == set(full)


CLIP, T5 = (
    config_json("sd3-pipeline-tiny/text_encoder"),
    config_json("sd3-pipeline-tiny/text_encoder_3"),
)


def test_what_files_say_of_the_end_token_and_the_projection_is_read():
    assert clip_text_config(CLIP).end_token == 531
    assert clip_text_config(CLIP | {"eos_token_id": 2}).end_token is None
    assert clip_text_config(CLIP).projection == 32
    assert clip_text_config(CLIP | {"architectures": ["CLIPTextModel"]}).projection is None


@pytest.mark.parametrize(
    ("said", "gated", "activation"),
    [
        ({"feed_forward_proj": "gated-gelu"}, True, "gelu_tanh"),
        ({"feed_forward_proj": "gated-silu"}, True, "silu"),
        ({"feed_forward_proj": "relu"}, False, "relu"),
        ({}, False, "relu"),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, True, "gelu"),
    ],
)
def test_what_files_say_of_the_mlp_is_read(said, gated, activation):
    own = ("feed_forward_proj", "is_gated_act", "dense_act_fn")
    config = t5_config({name: value for name, value in T5.items() if name not in own} | said)
    assert (config.gated, config.activation) == (gated, activation)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: clip_text_config(CLIP | {"architectures": ["CLIPModel"]}),
            "architectures must be one of CLIPTextModel, CLIPTextModelWithProjection, got CLIP",
        ),
        (
            lambda: clip_text_config(CLIP | {"hidden_act": "relu"}),
            "hidden_act must be one of quick_gelu, gelu, got relu",
        ),
        (
            lambda: clip_text_config({"architectures": ["CLIPTextModel"]}),
            "json must hold a value at vocab_size",
        ),
        (lambda: t5_config(T5 | {"model_type": "umt5"}), "model_type must be t5, got umt5"),
        (
            lambda: t5_config(T5 | {"dense_act_fn": "tanh"}),
            "feed_forward_proj must use one of the activ",
        ),
        (lambda: t5_config({"model_type": "t5"}), "json must hold a value at vocab_size"),
    ],
)
def test_models_of_other_kinds_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
