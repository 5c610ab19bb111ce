"""Tests of the configs and tensor layouts of CLIP and T5."""

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
    read_params,
    weights,
)

FOLDERS = (*CLIPS, *T5S)


@pytest.mark.parametrize("folder", FOLDERS)
def test_layouts_list_every_tensor_with_its_shape(folder):
    _, layouts = encoder(folder)
    shapes = {name: tensor.shape for name, tensor in weights(folder).items()}
    assert all_tensors(layouts) == shapes
    num_params = sum(np.prod(layout.shape) for _, layout in flatten_dict(layouts).items())
    assert num_params == sum(np.prod(shape) for shape in shapes.values())
    assert EMBEDDING in shapes or folder in CLIPS
    assert not {TIED, *BUFFERS} & set(shapes)


@pytest.mark.parametrize("folder", FOLDERS)
def test_parameters_from_files_have_the_shapes_of_initial_ones(folder):
    net, layouts = encoder(folder)
    initial = jax.eval_shape(net.init, jax.random.key(0))
    params = read_params(layouts, weights(folder))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, initial)


@pytest.mark.parametrize("folder", FOLDERS)
def test_tensor_parallel_axes_refer_to_existing_parameters(folder):
    net, layouts = encoder(folder)
    shapes = {name: layout.shape for name, layout in flatten_dict(layouts).items()}
    assert len(net.tensor_axes) >= 6
    for name, axis in net.tensor_axes.items():
        assert len(shapes[name]) >= -axis


def test_prefix_applies_to_all_tensors_except_the_projection():
    config = clip_text_config(config_json("sd3-pipeline-tiny/text_encoder"))
    bare = all_tensors(clip_text_layouts(config, prefix=""))
    full = all_tensors(clip_text_layouts(config))
    projection = "text_projection.weight"
    prefixed = {f"text_model.{name}" for name in bare if name != projection}
    assert prefixed | {projection} == set(full)


CLIP, T5 = (
    config_json("sd3-pipeline-tiny/text_encoder"),
    config_json("sd3-pipeline-tiny/text_encoder_3"),
)


def test_clip_config_reads_end_token_and_projection():
    assert clip_text_config(CLIP).end_token == 531
    assert clip_text_config(CLIP | {"eos_token_id": 2}).end_token is None
    assert clip_text_config(CLIP).projection == 32
    assert clip_text_config(CLIP | {"architectures": ["CLIPTextModel"]}).projection is None


@pytest.mark.parametrize(
    ("settings", "gated", "activation"),
    [
        ({"feed_forward_proj": "gated-gelu"}, True, "gelu_tanh"),
        ({"feed_forward_proj": "gated-silu"}, True, "silu"),
        ({"feed_forward_proj": "relu"}, False, "relu"),
        ({}, False, "relu"),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, True, "gelu"),
    ],
)
def test_t5_config_reads_the_mlp_type(settings, gated, activation):
    mlp_keys = ("feed_forward_proj", "is_gated_act", "dense_act_fn")
    other_settings = {name: value for name, value in T5.items() if name not in mlp_keys}
    config = t5_config(other_settings | settings)
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
def test_unsupported_configs_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
