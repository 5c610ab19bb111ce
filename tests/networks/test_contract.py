"""Tests of the properties that every network must have."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fmjax.networks import (
    DiTConfig,
    MLPConfig,
    SequenceTransformerConfig,
    UNetConfig,
    make_network,
)

BATCH = 8
DIT = DiTConfig(patch_size=2, width=16, num_layers=2, num_heads=2)
SEQUENCE = SequenceTransformerConfig(width=16, num_layers=2, num_heads=2)
UNET = UNetConfig(
    width=8, multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,), head_width=8
)


class NetworkArgs(NamedTuple):
    config: object
    event_shape: tuple[int, ...]
    num_classes: int | None


NETWORKS = {
    "mlp": NetworkArgs(MLPConfig(width=16, num_layers=2), (2,), 3),
    "unet": NetworkArgs(UNET, (8, 4, 1), 3),
    "dit sincos": NetworkArgs(DIT, (8, 4, 1), 3),
    "dit rotary": NetworkArgs(
        DiTConfig(2, 16, 2, 2, positions="rotary", qk_norm=True), (4, 4, 2), 3
    ),
    "dit learned": NetworkArgs(
        DiTConfig(2, 16, 2, 2, positions="learned", unroll_layers=True), (4, 4, 1), None
    ),
    "sequence": NetworkArgs(SEQUENCE, (6, 3), 3),
    "sequence rotary": NetworkArgs(
        SequenceTransformerConfig(16, 2, 2, positions="rotary", qk_norm=True), (5, 2), None
    ),
}
CONFIGS = {
    "mlp": (MLPConfig(16, 2), (2,)),
    "unet": (UNET, (8, 8, 1)),
    "dit": (DIT, (4, 4, 1)),
    "sequence": (SEQUENCE, (6, 3)),
}


class Evaluation(NamedTuple):
    out: jax.Array
    grads: dict
    jvp_product: jax.Array
    vjp_product: jax.Array


class Case(NamedTuple):
    args: NetworkArgs
    init_params: dict
    inputs: tuple
    evaluate: object
    init_out: jax.Array
    evaluation: Evaluation


def perturbed(params, seed=0, scale=0.2):
    """Add noise to the parameters, so that each of them affects the output."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: p + scale * rng.standard_normal(p.shape, np.float32), params)


def make_points(args, seed=0):
    rng = np.random.default_rng(seed)
    t = rng.uniform(size=BATCH).astype(np.float32)
    x = rng.standard_normal((BATCH, *args.event_shape), np.float32)
    cond = None if args.num_classes is None else np.arange(BATCH, dtype=np.int32) % 4
    return t, x, cond


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name == "unet")) for name in NETWORKS],
)
def case(request):
    args = NETWORKS[request.param]
    net = make_network(*args)
    init_params = net.init(jax.random.key(0))
    t, x, cond = make_points(args)
    tangent = np.random.default_rng(1).standard_normal(x.shape, np.float32)

    def evaluate(params, t, x, cond, tangent):
        """Compute the output and its derivatives in one program."""
        out, vjp = jax.vjp(lambda params, t, x: net.apply(params, t, x, cond), params, t, x)
        grads, t_bar, x_bar = vjp(tangent)
        out_tangent = jax.jvp(
            lambda t, x: net.apply(params, t, x, cond), (t, x), (jnp.ones_like(t), tangent)
        )[1]
        return Evaluation(
            out=out,
            grads=grads,
            jvp_product=jnp.sum(out_tangent * tangent),
            vjp_product=jnp.sum(t_bar) + jnp.sum(x_bar * tangent),
        )

    evaluate = jax.jit(evaluate)
    init_out = evaluate(init_params, t, x, cond, tangent).out
    evaluation = evaluate(perturbed(init_params), t, x, cond, tangent)
    return Case(args, init_params, (t, x, cond, tangent), evaluate, init_out, evaluation)


def test_output_has_the_shape_of_x_and_is_finite_float32(case):
    chex.assert_shape(case.evaluation.out, (BATCH, *case.args.event_shape))
    assert case.evaluation.out.dtype == jnp.float32
    assert np.all(np.isfinite(case.evaluation.out))


def test_params_are_nested_dicts_of_float32_arrays(case):
    def check(node):
        if type(node) is dict:
            assert all(type(key) is str for key in node)
            for child in node.values():
                check(child)
        else:
            assert isinstance(node, jax.Array)
            assert node.dtype == jnp.float32

    check(case.init_params)


def test_output_is_zero_at_initialization(case):
    np.testing.assert_array_equal(case.init_out, 0.0)


def test_every_parameter_has_a_nonzero_gradient(case):
    for key_path, grad in jax.tree_util.tree_leaves_with_path(case.evaluation.grads):
        name = jax.tree_util.keystr(key_path)
        assert np.all(np.isfinite(grad)), name
        assert np.max(np.abs(grad)) > 0, name


def test_forward_mode_agrees_with_reverse_mode(case):
    # <w, J v> = <J^T w, v> holds up to rounding, which is 1e-3 relative in float32 here.
    np.testing.assert_allclose(
        case.evaluation.jvp_product, case.evaluation.vjp_product, rtol=1e-3, atol=1e-3
    )


@pytest.mark.slow
def test_eight_devices_match_one_device(case):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    batch = NamedSharding(mesh, PartitionSpec("data"))
    replicated = NamedSharding(mesh, PartitionSpec())
    params = jax.device_put(perturbed(case.init_params), replicated)
    sharded = jax.device_put(case.inputs, batch)
    evaluation = case.evaluate(params, *sharded)
    assert len(evaluation.out.sharding.device_set) == 8
    np.testing.assert_allclose(evaluation.out, case.evaluation.out, rtol=2e-5, atol=2e-5)
    # The batch is summed in another order, so the rounding error scales with the largest value.
    for grad, expected in zip(
        jax.tree.leaves(evaluation.grads), jax.tree.leaves(case.evaluation.grads), strict=True
    ):
        atol = 1e-4 * max(1.0, float(np.max(np.abs(expected))))
        np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=atol)


@pytest.mark.slow
def test_initial_params_depend_on_the_key(case):
    net = make_network(*case.args)
    params = net.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params, case.init_params)
    other = jax.tree.leaves(net.init(jax.random.key(1)))
    assert any(
        not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), other, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_networks_keep_params_and_output_in_float32(name):
    config, event_shape = CONFIGS[name]
    net32 = make_network(config, event_shape)
    net16 = make_network(type(config)(**{**vars(config), "dtype": "bfloat16"}), event_shape)
    shapes = jax.eval_shape(net16.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    params = perturbed(jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes))
    t, x, _ = make_points(NetworkArgs(config, event_shape, None))
    program = str(jax.make_jaxpr(lambda p, t, x: net16.apply(p, t, x, None))(params, t, x))
    assert program.count("bf16") > 10
    expected, out = jax.jit(
        lambda params, t, x: (net32.apply(params, t, x, None), net16.apply(params, t, x, None))
    )(params, t, x)
    assert out.dtype == jnp.float32
    # bfloat16 has 8 bits of precision; a few dozen roundings stay below 5 % of the output.
    out, expected = np.asarray(out), np.asarray(expected)
    error = np.sqrt(np.mean((out - expected) ** 2) / np.mean(expected**2))
    assert 1e-5 < error < 0.05


@pytest.mark.parametrize("name", ["mlp", "dit sincos"])
def test_conditions_that_do_not_match_the_network_are_refused(name):
    config, event_shape, _ = NETWORKS[name]
    t, x, _ = make_points(NETWORKS[name])
    labels = np.zeros(BATCH, np.int32)
    for num_classes, cond, message in [
        (None, labels, "cond must be None for a network without conditions, got int32"),
        (3, None, r"cond must be class labels, integers of shape \(8,\), got None"),
    ]:
        net = make_network(config, event_shape, num_classes)
        params = jax.eval_shape(net.init, jax.random.key(0))
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(net.apply, params, *jax.device_put((t, x, cond)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLPConfig(width=0), "width must be at least 1, got 0"),
        (lambda: MLPConfig(num_layers=0), "num_layers must be at least 1, got 0"),
        (lambda: MLPConfig(dtype="float16"), "dtype must be one of float32, bfloat16"),
        (lambda: UNetConfig(width=0), "width must be at least 1, got 0"),
        (lambda: UNetConfig(num_blocks=0), "num_blocks must be at least 1, got 0"),
        (lambda: UNetConfig(multipliers=()), "multipliers must be one or more positive integers"),
        (lambda: UNetConfig(dtype="half"), "dtype must be one of"),
        (lambda: DiTConfig(patch_size=0), "patch_size must be at least 1, got 0"),
        (lambda: DiTConfig(mlp_ratio=0.0), "mlp_ratio must be positive, got 0.0"),
        (lambda: DiTConfig(positions="sincoss"), "did you mean 'sincos'"),
        (lambda: DiTConfig(dtype="float64"), "dtype must be one of"),
        (lambda: DiTConfig(width=30, num_heads=4), "num_heads must divide the width 30, got 4"),
        (
            lambda: DiTConfig(width=6, num_heads=1),
            "width must be a multiple of 4 for sincos, got 6",
        ),
        (
            lambda: DiTConfig(width=12, num_heads=2, positions="rotary"),
            "width / num_heads must be a multiple of 4 for rotary, got 6",
        ),
        (
            lambda: make_network(DiTConfig(patch_size=3, width=8, num_heads=2), (8, 8, 1)),
            "patch_size must divide the image size 8x8, got 3",
        ),
        (
            lambda: make_network(DIT, (8, 8)),
            r"event_shape must be \(height, width, channel\), got \(8, 8\)",
        ),
        (
            lambda: SequenceTransformerConfig(width=7, num_heads=1),
            "width must be a multiple of 2 for sincos, got 7",
        ),
        (
            lambda: SequenceTransformerConfig(width=9, num_heads=3, positions="rotary"),
            "width / num_heads must be a multiple of 2 for rotary, got 3",
        ),
        (
            lambda: make_network(SEQUENCE, (6,)),
            r"event_shape must be \(length, channels\), got \(6,\)",
        ),
        (lambda: make_network(UNET, (2,)), "event_shape must be"),
        (
            lambda: make_network(UNET, (7, 8, 1)),
            "image size must be a multiple of 2 for 2 levels, got 7x8",
        ),
        (
            lambda: make_network(UNetConfig(multipliers=(1, 2)), (28, 28, 1)),
            r"attention_resolutions must be among the heights of the levels, \(28, 14\), got \(16",
        ),
        (
            lambda: make_network(
                UNetConfig(10, (1,), num_blocks=1, attention_resolutions=(4,), head_width=3),
                (4, 4, 1),
            ),
            "head_width must divide the 10 channels, got 3",
        ),
    ],
)
def test_invalid_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
