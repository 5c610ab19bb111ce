"""Dropout with one random key per example."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def dropout(
    h: Float[Array, " batch *features"], rate: float, keys: Key[Array, " batch"] | None, layer: int
) -> Float[Array, " batch *features"]:
    """Set each feature to 0 with probability `rate`, and divide the others by `1 - rate`.

    The features of example i depend on key i only, so that they do not depend on the batch size or
    the number of devices.

    Args:
        h: Features.
        rate: Probability in [0, 1).
        keys: One key per example; None returns `h` unchanged, as in sampling.
        layer: Index of the layer in the network; layers drop different features.

    Reference: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from
    overfitting".
    """
    if keys is None or rate == 0.0:
        return h

    def sample(key: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, layer), 1.0 - rate, h.shape[1:])

    return jnp.where(jax.vmap(sample)(keys), h / (1.0 - rate), 0.0)
