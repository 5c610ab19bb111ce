"""Tensor names of joint text-image blocks in diffusers' files."""

from collections.abc import Mapping
from typing import Any

from fmjax.networks.transformers.joint_blocks import Sizes
from fmjax.networks.transformers.text_to_image import TIME_FEATURES
from fmjax.pretrained.layouts import TensorLayout, concatenated, linear, tensor

Views = dict[str, Any]

# Of one kind of token in a joint block: norm, queries, keys, values, output, MLP, their norms.
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
ALONE = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "attn2.norm_{}")


def around_blocks(about: Mapping[str, Any], width: int) -> Views:
    """Tensor names of the time and text embeddings and the last modulation."""
    pooled = about["pooled_projection_dim"]
    return {
        "time": embedding("time_text_embed.timestep_embedder", TIME_FEATURES, width),
        "pooled": embedding("time_text_embed.text_embedder", pooled, width),
        "tokens": linear("context_embedder", about["joint_attention_dim"], width),
        "modulation": scale_then_shift("norm_out.linear", width),
    }


def embedding(name: str, features: int, width: int) -> Views:
    """Two linear layers with silu between them."""
    return {
        "hidden": linear(f"{name}.linear_1", features, width),
        "out": linear(f"{name}.linear_2", width, width),
    }


def heads(sizes: Sizes, names: tuple[str, str, str], norm: str, *, rotary: bool) -> Views:
    """Queries, keys and values, which here are one matrix, one head after the other.

    Where places turn them, diffusers turns channels 2i and 2i + 1 of a head together, and fmjax
    channels i and i + dim / 2.

    Args:
        sizes: Of the block.
        names: Of the three layers.
        norm: Of the scales of their norms, with {} for q or k.
        rotary: Whether places turn queries and keys.
    """
    width, dim = sizes.width, sizes.head_width

    def turned(view: TensorLayout, axis: int) -> TensorLayout:
        if not rotary:
            return view
        every = (slice(None),) * axis
        return concatenated([view[(*every, slice(i, None, 2))] for i in range(2)], axis)

    kernels, biases = [], []
    layers = [linear(name, width, width) for name in names]
    for head in range(sizes.num_heads):
        for layer, turns in zip(layers, (True, True, False), strict=True):
            columns = slice(head * dim, (head + 1) * dim)
            kernel, bias = layer["kernel"][:, columns], layer["bias"][columns]
            kernels.append(turned(kernel, 1) if turns else kernel)
            biases.append(turned(bias, 0) if turns else bias)
    found: Views = {
        "linear": {"kernel": concatenated(kernels, axis=1), "bias": concatenated(biases)}
    }
    if sizes.qk_norm:
        for which in "qk":
            scale = tensor(f"{norm.format(which)}.weight", dim)
            found[f"{which}_scale"] = turned(scale, 0)
    return found


def stream(
    sizes: Sizes,
    block: str,
    own: tuple[str, ...],
    *,
    rotary: bool = False,
    dual: bool = False,
    last: bool = False,
) -> Views:
    """One kind of token's part in a joint block.

    Args:
        sizes: Of the block.
        block: Its name.
        own: `IMAGE` or `TEXT`.
        rotary: As of `heads`.
        dual: Whether it attends to itself alone, too.
        last: Whether nothing comes of it.
    """
    norm, query, key, value, out, mlp, normed = (f"{block}.{name}" for name in own)
    width = sizes.width
    to_heads = heads(sizes, (query, key, value), normed, rotary=rotary)
    if last:
        return {"modulation": scale_then_shift(f"{norm}.linear", width), "to_heads": to_heads}
    found: Views = {
        "modulation": linear(f"{norm}.linear", width, (9 if dual else 6) * width),
        "to_heads": to_heads,
        "out": linear(out, width, width),
        "mlp_in": linear(f"{mlp}.net.0.proj", width, 4 * width),
        "mlp_out": linear(f"{mlp}.net.2", 4 * width, width),
    }
    if dual:
        query, key, value, out, normed = (f"{block}.{name}" for name in ALONE)
        found["alone"] = {
            "to_heads": heads(sizes, (query, key, value), normed, rotary=rotary),
            "out": linear(out, width, width),
        }
    return found


def scale_then_shift(name: str, width: int) -> Views:
    """A modulation whose file has the scale first; here the shift is."""
    layer = linear(name, width, 2 * width)
    scale, shift = slice(None, width), slice(width, None)
    kernel, bias = layer["kernel"], layer["bias"]
    return {
        "kernel": concatenated([kernel[:, shift], kernel[:, scale]], axis=1),
        "bias": concatenated([bias[shift], bias[scale]]),
    }


def require_class(about: Mapping[str, Any], name: str) -> None:
    """Raise unless a config.json is of this class of diffusers."""
    found = about.get("_class_name")
    if found != name:
        raise ValueError(f"config.json must be of a {name}, got {found}")
