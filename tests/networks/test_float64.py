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
def test_float64_inputs_make_a_float32_network_compute_the_same_function_in_float64(name):
    net = NETS[name]()
    leaves, tree = jax.tree.flatten(net.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    # A fresh network ends in zeros; so that there is something to compare, it is disturbed.
    leaves = [np.float32(leaf + 0.1 * rng.standard_normal(leaf.shape)) for leaf in leaves]
    t, x = np.full(2, 0.3, np.float32), rng.standard_normal((2, 4, 4, 1)).astype(np.float32)
    apply = jax.jit(net.apply)
    narrow = apply(tree.unflatten(leaves), t, x, None)
    with jax.enable_x64(True):
        params, t, x = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64), (tree.unflatten(leaves), t, x)
        )
        wide = apply(params, t, x, None)
        moved = apply(params, t + 1e-12, x + 1e-12, None)
    assert (narrow.dtype, wide.dtype) == (jnp.float32, jnp.float64)
    np.testing.assert_allclose(narrow, wide, atol=2e-5)
    # Somewhere within, float32 would swallow a change of 1e-12.
    assert 0 < np.abs(np.asarray(moved) - np.asarray(wide)).max() < 1e-8
