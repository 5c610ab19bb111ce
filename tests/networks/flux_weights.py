"""Weights of a FLUX transformer as diffusers names and lays them out, in fmjax's layout."""

import numpy as np


def linear(weights, name):
    """A linear layer: a matrix that multiplies rows from the right."""
    return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}


def heads(weights, names, norms, num_heads):
    """Queries, keys and values of one head after the other.

    Diffusers turns channels 2i and 2i + 1 of a head together, fmjax i and i + dim / 2.
    """
    dim = weights[f"{norms[0]}.weight"].size
    halves = np.concatenate([np.arange(0, dim, 2), np.arange(1, dim, 2)])
    kernels, biases = [], []
    for name, order in zip(names, (halves, halves, np.arange(dim)), strict=True):
        kernel = weights[f"{name}.weight"].T
        kernels.append(kernel.reshape(-1, num_heads, dim)[..., order])
        biases.append(weights[f"{name}.bias"].reshape(num_heads, dim)[..., order])
    kernel, bias = np.stack(kernels, axis=2), np.stack(biases, axis=1)
    return {
        "linear": {"kernel": kernel.reshape(len(kernel), -1), "bias": bias.reshape(-1)},
        "q_scale": weights[f"{norms[0]}.weight"][halves],
        "k_scale": weights[f"{norms[1]}.weight"][halves],
    }


def stream(weights, block, own, num_heads):
    """One kind of token's part in a joint block; `own` are its seven names."""
    norm, query, key, value, out, mlp, normed = (f"{block}.{name}" for name in own)
    of_query, of_key = normed.format("q"), normed.format("k")
    return {
        "modulation": linear(weights, f"{norm}.linear"),
        "to_heads": heads(weights, (query, key, value), (of_query, of_key), num_heads),
        "out": linear(weights, out),
        "mlp_in": linear(weights, f"{mlp}.net.0.proj"),
        "mlp_out": linear(weights, f"{mlp}.net.2"),
    }


IMAGE = ("norm1", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff", "attn.norm_{}")
TEXT = ("norm1_context", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
        "attn.to_add_out", "ff_context", "attn.norm_added_{}")  # fmt: skip


def single(weights, block, num_heads):
    """A block on all tokens alike."""
    out = linear(weights, f"{block}.proj_out")
    width = out["bias"].size
    names = tuple(f"{block}.attn.to_{name}" for name in "qkv")
    norms = (f"{block}.attn.norm_q", f"{block}.attn.norm_k")
    return {
        "modulation": linear(weights, f"{block}.norm.linear"),
        "to_heads": heads(weights, names, norms, num_heads),
        "mlp_in": linear(weights, f"{block}.proj_mlp"),
        "out": {"kernel": out["kernel"][:width], "bias": out["bias"]},
        "mlp_out": {"kernel": out["kernel"][width:]},
    }


def stacked(blocks):
    """Equal nested dicts as one, with a leading axis."""
    first = blocks[0]
    if isinstance(first, dict):
        return {name: stacked([block[name] for block in blocks]) for name in first}
    return np.stack(blocks)


def embedding(weights, name):
    """Two linear layers with silu between them."""
    return {
        "hidden": linear(weights, f"{name}.linear_1"),
        "out": linear(weights, f"{name}.linear_2"),
    }


def flux_params(weights, config):
    """Params of `make_flux`; diffusers' patches are `[channel, row, column]`."""
    num_heads, channels = config["num_attention_heads"], config["in_channels"] // 4
    patches, out = linear(weights, "x_embedder"), linear(weights, "proj_out")
    width = patches["bias"].size

    def rows_first(array):
        return np.moveaxis(array.reshape(channels, 2, 2, -1), 0, 2).reshape(array.shape)

    patches["kernel"] = rows_first(patches["kernel"])
    out = {"kernel": rows_first(out["kernel"].T).T, "bias": rows_first(out["bias"])}
    last = linear(weights, "norm_out.linear")  # Scale, then shift.
    last = {name: np.roll(array, width, axis=-1) for name, array in last.items()}
    params = {
        "time": embedding(weights, "time_text_embed.timestep_embedder"),
        "pooled": embedding(weights, "time_text_embed.text_embedder"),
        "tokens": linear(weights, "context_embedder"),
        "patches": patches,
        "double": stacked([
            {"image": stream(weights, f"transformer_blocks.{i}", IMAGE, num_heads),
             "text": stream(weights, f"transformer_blocks.{i}", TEXT, num_heads)}
            for i in range(config["num_layers"])
        ]),
        "single": stacked([single(weights, f"single_transformer_blocks.{i}", num_heads)
                           for i in range(config["num_single_layers"])]),
        "modulation": last,
        "out": out,
    }  # fmt: skip
    if config["guidance_embeds"]:
        params["guidance"] = embedding(weights, "time_text_embed.guidance_embedder")
    return params
