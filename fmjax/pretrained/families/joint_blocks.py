"""Tensor layouts of joint text-image blocks, shared by FLUX and SD3."""

from collections.abc import Mapping
from typing import Any

from fmjax._checks import require
from fmjax.networks.transformers.joint_blocks import Sizes
from fmjax.networks.transformers.text_to_image import TIME_FEATURES
from fmjax.pretrained.layouts import Layouts, TensorLayout, concatenated, linear, tensor

# Module names of one stream in diffusers: norm, queries, keys, values, output, MLP, and the norms
# of queries and keys, with {} for q or k.
IMAGE = ("norm1", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff", "attn.norm_{}")
TEXT = (
    "norm1_context",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "ff_context",
    "attn.norm_added_{}",
)
_SECOND_ATTENTION = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "attn2.norm_{}")


def embeddings_and_modulation(config_json: Mapping[str, Any], width: int) -> Layouts:
    """Return the layouts of the time and text embeddings and the last modulation.

    Args:
        config_json: Contents of the transformer's config.json.
        width: Width of the transformer.
    """
    pooled = config_json["pooled_projection_dim"]
    return {
        "time": embedding("time_text_embed.timestep_embedder", TIME_FEATURES, width),
        "pooled": embedding("time_text_embed.text_embedder", pooled, width),
        "tokens": linear("context_embedder", config_json["joint_attention_dim"], width),
        "modulation": scale_then_shift("norm_out.linear", width),
    }


def embedding(name: str, features: int, width: int) -> Layouts:
    """Return the layouts of an embedding: two linear layers with a SiLU between them."""
    return {
        "hidden": linear(f"{name}.linear_1", features, width),
        "out": linear(f"{name}.linear_2", width, width),
    }


def heads(sizes: Sizes, names: tuple[str, str, str], norm: str, *, rotary: bool) -> Layouts:
    """Return the layouts of the layer that computes queries, keys and values of all heads.

    In fmjax it is one matrix, ordered by head. Rotary embeddings rotate channels 2i and 2i + 1 of
    a head together in diffusers, and channels i and i + head_width / 2 in fmjax.

    Args:
        sizes: Sizes of the block.
        names: Names of the layers of queries, keys and values in diffusers.
        norm: Name of the norms of queries and keys, with {} for q or k.
        rotary: Whether queries and keys use rotary embeddings.
    """
    width, dim = sizes.width, sizes.head_width

    def rotary_order(layout: TensorLayout, axis: int) -> TensorLayout:
        if not rotary:
            return layout
        leading = (slice(None),) * axis
        return concatenated([layout[(*leading, slice(i, None, 2))] for i in range(2)], axis)

    kernels, biases = [], []
    layers = [linear(name, width, width) for name in names]
    for head in range(sizes.num_heads):
        for layer, rotates in zip(layers, (True, True, False), strict=True):
            columns = slice(head * dim, (head + 1) * dim)
            kernel, bias = layer["kernel"][:, columns], layer["bias"][columns]
            kernels.append(rotary_order(kernel, 1) if rotates else kernel)
            biases.append(rotary_order(bias, 0) if rotates else bias)
    layouts: Layouts = {
        "linear": {"kernel": concatenated(kernels, axis=1), "bias": concatenated(biases)}
    }
    if sizes.qk_norm:
        for part in "qk":
            scale = tensor(f"{norm.format(part)}.weight", dim)
            layouts[f"{part}_scale"] = rotary_order(scale, 0)
    return layouts


def stream(
    sizes: Sizes,
    block: str,
    names: tuple[str, ...],
    *,
    rotary: bool = False,
    dual: bool = False,
    last: bool = False,
) -> Layouts:
    """Return the layouts of one stream (image or text tokens) of a joint block.

    Args:
        sizes: Sizes of the block.
        block: Name of the block in diffusers.
        names: Module names of the stream, `IMAGE` or `TEXT`.
        rotary: Whether queries and keys use rotary embeddings.
        dual: Whether the stream has a second attention layer over its own tokens only.
        last: Whether the output of the stream is unused, as for the text in SD3's last block.
    """
    norm, query, key, value, out, mlp, qk_norm = (f"{block}.{name}" for name in names)
    width = sizes.width
    to_heads = heads(sizes, (query, key, value), qk_norm, rotary=rotary)
    if last:
        return {"modulation": scale_then_shift(f"{norm}.linear", width), "to_heads": to_heads}
    layouts: Layouts = {
        "modulation": linear(f"{norm}.linear", width, (9 if dual else 6) * width),
        "to_heads": to_heads,
        "out": linear(out, width, width),
        "mlp_in": linear(f"{mlp}.net.0.proj", width, 4 * width),
        "mlp_out": linear(f"{mlp}.net.2", 4 * width, width),
    }
    if dual:
        query, key, value, out, qk_norm = (f"{block}.{name}" for name in _SECOND_ATTENTION)
        layouts["alone"] = {
            "to_heads": heads(sizes, (query, key, value), qk_norm, rotary=rotary),
            "out": linear(out, width, width),
        }
    return layouts


def scale_then_shift(name: str, width: int) -> Layouts:
    """Return the layouts of a modulation stored as scale, shift; fmjax uses shift, scale."""
    layer = linear(name, width, 2 * width)
    scale, shift = slice(None, width), slice(width, None)
    kernel, bias = layer["kernel"], layer["bias"]
    return {
        "kernel": concatenated([kernel[:, shift], kernel[:, scale]], axis=1),
        "bias": concatenated([bias[shift], bias[scale]]),
    }


def require_class(config_json: Mapping[str, Any], name: str) -> None:
    """Raise a `ValueError` unless a config.json names this class of diffusers."""
    class_name = config_json.get("_class_name")
    require(class_name == name, "config.json", f"name the class {name}", class_name)
