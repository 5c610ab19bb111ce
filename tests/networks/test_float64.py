"""Tests of networks applied to float64 inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.networks import DiTConfig, MLPConfig, UNetConfig, make_dit, make_mlp, make_unet

NETS = {
    "dit": lambda: make_dit(DiTConfig(width=16, num_layers=1, num_heads=2), (4, 4, 1)),
    "rotary": lambda: make_dit(
        DiTConfig(width=16, num_layers=1, num_heads=2, positions="rotary", qk_norm=True), (4, 4, 1)
    ),
    "mlp": lambda: make_mlp(MLPConfig(width=16, num_layers=1), (4, 4, 1)),
    "unet": lambda: make_unet(
        UNetConfig(width=8, multipliers=(1, 2), num_blocks=1, attention_resolutions=(2,)), (4, 4, 1)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_float64_inputs_are_computed_in_float64(name):
    net = NETS[name]()
    leaves, tree = jax.tree.flatten(net.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    # The last layer is initialized to zero, so the parameters are perturbed.
    leaves = [np.float32(leaf + 0.1 * rng.standard_normal(leaf.shape)) for leaf in leaves]
    t, x = np.full(2, 0.3, np.float32), rng.standard_normal((2, 4, 4, 1)).astype(np.float32)
    apply = jax.jit(net.apply)
    out32 = apply(tree.unflatten(leaves), t, x, None)
    with jax.enable_x64(True):
        params, t, x = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64), (tree.unflatten(leaves), t, x)
        )
        out64 = apply(params, t, x, None)
        shifted = apply(params, t + 1e-12, x + 1e-12, None)
    assert (out32.dtype, out64.dtype) == (jnp.float32, jnp.float64)
    np.testing.assert_allclose(out32, out64, atol=2e-5)
    # A float32 operation inside the network would round the change of 1e-12 to zero.
    assert 0 < np.abs(np.asarray(shifted) - np.asarray(out64)).max() < 1e-8
