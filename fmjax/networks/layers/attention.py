"""Attention, by the fastest means that a device has.

All of them compute `softmax(q k^T / sqrt(dim)) v`, the softmax in float32, with queries, keys and
values `[batch, heads, tokens, dim]`. Plain products of matrices work everywhere, for forward mode
too. The kernels never hold the `[tokens, tokens]` weights, but know reverse mode alone.

Source: Vaswani et al. 2017, arXiv:1706.03762, equation 1.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fmjax._checks import require
from fmjax.sharding import heads_spec, shard_heads

ATTENTIONS = ("auto", "xla", "splash", "cudnn")

# Below so many tokens the kernel's blocks are too few to pay, and the weights small.
_LEAST_FOR_SPLASH = 1024
_BLOCKS = (512, 256, 128)


def attention(
    q: Float[Array, "batch heads queries dim"],
    k: Float[Array, "batch heads keys dim"],
    v: Float[Array, "batch heads keys dim"],
    kind: str = "xla",
    bias: Float[Array, "some queries keys"] | None = None,
) -> Float[Array, "batch heads queries dim"]:
    """What each query sees of the values, in the dtype of `v`.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        kind: "xla" (plain products), "splash" (TPU), "cudnn" (NVIDIA), or "auto": by the platform
            of the mesh in context, or JAX's default one; plain where the kernel takes no such
            sizes or types.
        bias: Added to the logits before the softmax, for every head or (1 of them) for all alike;
            minus infinity hides a key. The kernels take none.

    Raises:
        ValueError: If a kernel is asked for that takes no such sizes or types, or no bias.
    """
    if kind == "auto":
        kind = _fastest(q, k, v) if bias is None else "xla"
    require(bias is None or kind == "xla", "attention", "be 'xla' where it has a bias", kind)
    q, k, v = shard_heads(q, k, v)
    if kind == "splash":
        return _splash(q, k, v)
    if kind == "cudnn":
        require(
            _fits_cudnn(q),
            "attention",
            "be given bfloat16 heads of at most 128 channels, a multiple of 8, for cudnn",
            f"{q.dtype} and {q.shape[-1]}",
        )
        return _each_device(_cudnn, q, k, v)
    return _plain(q, k, v, bias)


def _fastest(q: jax.Array, k: jax.Array, v: jax.Array) -> str:
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    platform = jax.default_backend() if device is None else device.platform
    tokens = min(q.shape[2], k.shape[2])
    if platform == "tpu" and tokens >= _LEAST_FOR_SPLASH:
        return "splash"
    if platform in ("gpu", "cuda") and _fits_cudnn(q) and q.dtype == k.dtype == v.dtype:
        return "cudnn"
    return "xla"


def _plain(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Two products. They are the fastest form that XLA has on the CPU.

    The division comes after the second product, over [queries, dim] instead of [queries, keys],
    and with it the sums of the backward pass.
    """
    scale = 1.0 / math.sqrt(q.shape[-1])
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bhqd,bhkd->bhqk", q * scale, k, preferred_element_type=wide)
    if bias is not None:
        logits = logits + bias[None].astype(wide)
    # The largest logit cancels out of the quotient, so no derivative goes through it.
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(v.dtype), v, preferred_element_type=wide)
    return (mixed / total).astype(v.dtype)


def _block(tokens: int) -> int | None:
    """The longest block that the tokens are a multiple of, None if there is none."""
    return next((block for block in _BLOCKS if tokens % block == 0), None)


def _splash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """JAX's kernel for TPU; on a mesh each device for its own rows and heads or queries."""
    return _each_device(_splash_here, q * (1.0 / math.sqrt(q.shape[-1])), k, v)


def _each_device(kernel: Any, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """A kernel for what each device of the mesh has of queries, keys and values."""
    spec_q, spec_kv = heads_spec(q.shape)
    if spec_q is None:
        return kernel(q, k, v)
    specs = (spec_q, spec_kv, spec_kv)
    return jax.shard_map(kernel, in_specs=specs, out_specs=spec_q, check_vma=False)(q, k, v)


def _splash_here(q: jax.Array, k: jax.Array, v: jax.Array, *, interpret: bool = False) -> jax.Array:
    """The kernel on one device. Its blocks are whole: what they lack is filled up, and not seen."""
    # Imported where it is used: it takes as long as half of jax.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    (_, heads, num_queries, _), num_keys = q.shape, k.shape[2]
    q, (k, v) = _filled(q), (_filled(k), _filled(v))
    queries, keys = q.shape[2], k.shape[2]
    block_q, block_kv = _block(queries), _block(keys)
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
    if keys != num_keys:  # Only tokens of one segment see each other.
        real = (jnp.arange(keys) >= num_keys).astype(jnp.int32)
        segments = splash.SegmentIds(q=jnp.zeros(queries, jnp.int32), kv=real)
    mixed: Any = jax.vmap(partial(kernel, segment_ids=segments))(q, k, v)
    return mixed[:, :, :num_queries]


def _filled(tokens: jax.Array) -> jax.Array:
    """Zeros behind the tokens, up to whole blocks: the longest, where that is not much more."""
    num = tokens.shape[2]
    if _block(num) is not None:
        return tokens
    size = next(block for block in _BLOCKS if block <= num // 8 or block == _BLOCKS[-1])
    return jnp.pad(tokens, ((0, 0), (0, 0), (0, -num % size), (0, 0)))


def _fits_cudnn(q: jax.Array) -> bool:
    narrow = q.dtype in (jnp.bfloat16, jnp.float16)
    return narrow and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """NVIDIA's kernel, `[batch, tokens, heads, dim]`; of odd numbers it has no gradient."""
    num_queries, num_keys = q.shape[2], k.shape[2]
    q, k, v = (a.transpose(0, 2, 1, 3) for a in (_even(q), _even(k), _even(v)))
    lengths: dict[str, Any] = {}
    if (q.shape[1], k.shape[1]) != (num_queries, num_keys):
        full = jnp.ones(q.shape[0], jnp.int32)
        lengths = dict(query_seq_lengths=num_queries * full, key_value_seq_lengths=num_keys * full)
    out = jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **lengths)
    return out.transpose(0, 2, 1, 3)[:, :, :num_queries]


def _even(tokens: jax.Array) -> jax.Array:
    """Zeros behind an odd number of tokens, up to a multiple of 8."""
    num = tokens.shape[2]
    return jnp.pad(tokens, ((0, 0), (0, 0), (0, -num % 8 if num % 2 else 0), (0, 0)))
