"""Tests of FLOP counts against hand calculations and the compiler, and of chip limits."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from fmjax._arrays import Batch
from fmjax.losses import flow_matching_objective
from fmjax.networks import DiTConfig, MLPConfig, UNetConfig, make_network
from fmjax.networks.transformers.dit import DIT_XL
from fmjax.paths import AffinePath
from fmjax.planning import CHIPS, count_flops, flops_per_example


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_flops_of_products_convolutions_scans_and_branches():
    assert count_flops(jnp.matmul, array(5, 2, 3), array(5, 3, 4)) == 5 * 2 * 2 * 3 * 4

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    assert count_flops(convolve, array(2, 8, 6, 3), array(3, 3, 3, 5)) == 2 * 2 * 4 * 3 * 5 * 27

    def repeated(x, w):
        x, _ = jax.lax.scan(lambda x, _: (jax.jit(jnp.matmul)(x, w), None), x, length=7)
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x)

    assert count_flops(repeated, array(3, 3), array(3, 3)) == 9 * 2 * 27
    assert count_flops(jnp.sin, array(3)) == 0


def flops_of_step(config, event_shape, num_classes=None):
    """Return the FLOPs per example of a training step."""
    net = make_network(config, event_shape, num_classes)
    params = jax.eval_shape(net.init, jax.random.key(0))
    objective = flow_matching_objective(net, AffinePath(), null_cond=num_classes)
    labels = None if num_classes is None else jax.ShapeDtypeStruct((4,), jnp.int32)
    return flops_per_example(objective, params, Batch(array(4, *event_shape), labels))


def test_flops_of_dit_xl_step_match_publication():
    # Peebles and Xie 2023, table 9: 118.64 G multiply-adds in the forward pass.
    assert flops_of_step(DIT_XL, (32, 32, 4), 1000) == pytest.approx(3 * 2 * 118.64e9, rel=2e-3)
    rematerialized = dataclasses.replace(DIT_XL, remat="full")
    assert flops_of_step(rematerialized, (32, 32, 4), 1000) == flops_of_step(
        DIT_XL, (32, 32, 4), 1000
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "event_shape"),
    [
        (DiTConfig(2, 128, 2, 2, unroll_layers=True), (16, 16, 3)),
        (UNetConfig(32, (1, 2), 1, attention_resolutions=(32,)), (64, 64, 3)),
        (MLPConfig(256, 3, unroll_layers=True), (64,)),
    ],
)
def test_flops_match_compiler_for_unrolled_layers(config, event_shape):
    net = make_network(config, event_shape)
    args = (jax.eval_shape(net.init, jax.random.key(0)), array(4), array(4, *event_shape), None)
    compiled = jax.jit(net.apply).lower(*args).compile()
    # The compiler also counts additions and norms, and omits some products with padding.
    assert count_flops(net.apply, *args) == pytest.approx(
        compiled.cost_analysis()["flops"], rel=0.1
    )


def test_all_chips_have_plausible_limits():
    for name, chip in CHIPS.items():
        # 100 TFLOP/s to 3 PFLOP/s, and 100 to 1,000 FLOPs per byte of memory bandwidth.
        assert 1e14 < chip.peak_flops < 3e15, name
        assert 100 < chip.peak_flops / chip.memory_bandwidth < 1000, name
        assert chip.link_bandwidth < chip.memory_bandwidth < 1e13 < 1e3 * chip.memory, name
