"""Attention with a plain XLA implementation and the fused kernels of TPU and GPU.

All implementations compute `softmax(q k^T / sqrt(dim)) v` with a float32 softmax, for queries, keys
and values `[batch, heads, tokens, dim]`. The XLA implementation works on every device and supports
forward-mode differentiation. The kernels never store the `[tokens, tokens]` weights, but support
only reverse mode.

Reference: Vaswani et al. 2017, arXiv:1706.03762, equation 1.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fmjax._checks import require
from fmjax.sharding import heads_spec, shard_heads

ATTENTIONS = ("auto", "xla", "splash", "cudnn")

# With fewer tokens, the weights are small and the kernel has too few blocks to be faster.
_MIN_TOKENS_FOR_SPLASH = 1024
_BLOCK_SIZES = (512, 256, 128)


def attention(
    q: Float[Array, "batch heads queries dim"],
    k: Float[Array, "batch heads keys dim"],
    v: Float[Array, "batch heads keys dim"],
    implementation: str = "xla",
    bias: Float[Array, "bias_heads queries keys"] | None = None,
) -> Float[Array, "batch heads queries dim"]:
    """Compute scaled dot-product attention, in the dtype of `v`.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        implementation: "xla" (matrix products), "splash" (TPU), "cudnn" (NVIDIA GPU), or "auto".
            "auto" selects by the platform of the mesh in context or JAX's default platform, and
            uses "xla" where the kernel does not support the sizes or types.
        bias: Bias added to the logits before the softmax, for each head or (`bias_heads` = 1) for
            all heads; minus infinity masks a key. Only "xla" supports a bias.

    Raises:
        ValueError: If the kernel does not support the sizes or types, or a bias.
    """
    if implementation == "auto":
        implementation = _select_implementation(q, k, v) if bias is None else "xla"
    supports_bias = bias is None or implementation == "xla"
    require(supports_bias, "attention", "be 'xla' if a bias is used", implementation)
    q, k, v = shard_heads(q, k, v)
    if implementation == "splash":
        return _splash_attention(q, k, v)
    if implementation == "cudnn":
        require(
            _supports_cudnn(q),
            "attention inputs",
            "be bfloat16 or float16 with at most 128 channels per head, a multiple of 8, for cudnn",
            f"{q.dtype} with {q.shape[-1]} channels",
        )
        return _map_over_devices(_cudnn_attention, q, k, v)
    return _xla_attention(q, k, v, bias)


def _select_implementation(q: jax.Array, k: jax.Array, v: jax.Array) -> str:
    """Return the fastest implementation for these inputs on the current platform."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    platform = jax.default_backend() if device is None else device.platform
    tokens = min(q.shape[2], k.shape[2])
    if platform == "tpu" and tokens >= _MIN_TOKENS_FOR_SPLASH:
        return "splash"
    if platform in ("gpu", "cuda") and _supports_cudnn(q) and q.dtype == k.dtype == v.dtype:
        return "cudnn"
    return "xla"


def _xla_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """Compute attention as two matrix products, the fastest form for XLA on the CPU.

    Dividing by the sum of the weights after the second product, over [queries, dim] instead of
    [queries, keys], makes the division and its backward pass cheaper.
    """
    scale = 1.0 / math.sqrt(q.shape[-1])
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bhqd,bhkd->bhqk", q * scale, k, preferred_element_type=dtype)
    if bias is not None:
        logits = logits + bias[None].astype(dtype)
    # The largest logit cancels in the quotient, so its derivative is zero.
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(v.dtype), v, preferred_element_type=dtype)
    return (out / total).astype(v.dtype)


def _block_size(tokens: int) -> int | None:
    """Return the largest block size that divides the number of tokens, or None."""
    return next((size for size in _BLOCK_SIZES if tokens % size == 0), None)


def _splash_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Compute attention by JAX's splash kernel for TPU, on each device of the mesh."""
    return _map_over_devices(_splash_on_device, q * (1.0 / math.sqrt(q.shape[-1])), k, v)


def _map_over_devices(
    kernel: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array
) -> jax.Array:
    """Apply a kernel to the shard of queries, keys and values of each device of the mesh."""
    spec_q, spec_kv = heads_spec(q.shape)
    if spec_q is None:
        return kernel(q, k, v)
    specs = (spec_q, spec_kv, spec_kv)
    return jax.shard_map(kernel, in_specs=specs, out_specs=spec_q, check_vma=False)(q, k, v)


def _splash_on_device(
    q: jax.Array, k: jax.Array, v: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Run the splash kernel on one device, with tokens padded to full blocks and masked."""
    # Imported here because it takes half as long as importing jax.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    (_, heads, num_queries, _), num_keys = q.shape, k.shape[2]
    q, (k, v) = _pad_to_blocks(q), (_pad_to_blocks(k), _pad_to_blocks(v))
    queries, keys = q.shape[2], k.shape[2]
    block_q, block_kv = _block_size(queries), _block_size(keys)
    assert block_q is not None
    assert block_kv is not None
    sizes = splash.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_kv_dkv_compute=block_kv,
        use_fused_bwd_kernel=True,
    )
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.FullMask((queries, keys))] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segments = None
    if keys != num_keys:  # Tokens attend only to tokens of their segment: mask the padding.
        is_padding = (jnp.arange(keys) >= num_keys).astype(jnp.int32)
        segments = splash.SegmentIds(q=jnp.zeros(queries, jnp.int32), kv=is_padding)
    out: Any = jax.vmap(partial(kernel, segment_ids=segments))(q, k, v)
    return out[:, :, :num_queries]


def _pad_to_blocks(tokens: jax.Array) -> jax.Array:
    """Pad tokens with zeros to full blocks, of the largest size that adds little padding."""
    num = tokens.shape[2]
    if _block_size(num) is not None:
        return tokens
    size = next(size for size in _BLOCK_SIZES if size <= num // 8 or size == _BLOCK_SIZES[-1])
    return jnp.pad(tokens, ((0, 0), (0, 0), (0, -num % size), (0, 0)))


def _supports_cudnn(q: jax.Array) -> bool:
    has_16_bits = q.dtype in (jnp.bfloat16, jnp.float16)
    return has_16_bits and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128


def _cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Compute attention by NVIDIA's cuDNN kernel, with odd numbers of tokens padded.

    The kernel has no gradient for odd numbers of tokens. Its layout is `[batch, tokens, heads,
    dim]`.
    """
    num_queries, num_keys = q.shape[2], k.shape[2]
    q, k, v = (
        a.transpose(0, 2, 1, 3)
        for a in (_pad_odd_tokens(q), _pad_odd_tokens(k), _pad_odd_tokens(v))
    )
    lengths: dict[str, Any] = {}
    if (q.shape[1], k.shape[1]) != (num_queries, num_keys):
        full = jnp.ones(q.shape[0], jnp.int32)
        lengths = dict(query_seq_lengths=num_queries * full, key_value_seq_lengths=num_keys * full)
    out = jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **lengths)
    return out.transpose(0, 2, 1, 3)[:, :, :num_queries]


def _pad_odd_tokens(tokens: jax.Array) -> jax.Array:
    """Pad an odd number of tokens with zeros to a multiple of 8."""
    num = tokens.shape[2]
    return jnp.pad(tokens, ((0, 0), (0, 0), (0, -num % 8 if num % 2 else 0), (0, 0)))
