"""Tests of classifier-free guidance and null conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fmjax._inputs import null_like, require_cond
from fmjax.losses import drop_condition
from fmjax.paths import VelocityFn, evaluations
from fmjax.solvers import classifier_free

NULL = 10
T = jnp.linspace(0.0, 1.0, 8)
X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
LABELS = jnp.arange(8)


def field(t, x, cond):
    """Velocity field that is nonlinear in the label."""
    return jnp.sin(x + t[:, None] + cond[:, None] ** 2)


def guided_formula(scale):
    null = field(T, X, jnp.full(8, NULL))
    return null + scale * (field(T, X, LABELS) - null)


@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0])
def test_guidance_matches_its_formula(scale):
    guided = classifier_free(field, NULL, scale)
    assert isinstance(guided, VelocityFn)
    np.testing.assert_allclose(jax.jit(guided)(T, X, LABELS), guided_formula(scale), atol=1e-6)
    np.testing.assert_array_equal(evaluations(guided, T), np.full(8, 2))


def test_scale_of_one_returns_the_field():
    assert classifier_free(field, NULL, 1.0) is field


def test_only_times_inside_the_interval_are_guided():
    guided = classifier_free(field, NULL, 3.0, (T[2].item(), T[5].item()))  # Both ends are inside.
    inside = (np.arange(8) >= 2) & (np.arange(8) <= 5)
    expected = np.where(inside[:, None], guided_formula(3.0), field(T, X, LABELS))
    np.testing.assert_allclose(jax.jit(guided)(T, X, LABELS), expected, atol=1e-6)
    counts = evaluations(guided, T)
    np.testing.assert_array_equal(counts, np.where(inside, 2, 1))
    assert counts.dtype == jnp.int32


def test_nested_guidance_counts_all_evaluations():
    inner = classifier_free(field, NULL, 2.0, (0.0, 0.5))
    outer = classifier_free(inner, NULL, 2.0, (0.3, 1.0))
    # Times 0, 0.14 and 0.29 are in the inner interval, 0.43 in both, the others in the outer one.
    np.testing.assert_array_equal(evaluations(outer, T), [2, 2, 2, 4, 2, 2, 2, 2])


def test_network_evaluates_twice_the_rows_inside_the_interval():
    batch_sizes = []

    def counted(t, x, cond):
        jax.debug.callback(lambda: batch_sizes.append(x.shape[0]))
        return field(t, x, cond)

    guided = jax.jit(classifier_free(counted, NULL, 3.0, (0.4, 0.6)))
    for time, expected in ((0.1, [8]), (0.5, [16]), (0.9, [8])):
        batch_sizes.clear()
        guided(jnp.full(8, time), X, LABELS).block_until_ready()
        jax.effects_barrier()
        assert batch_sizes == expected


def test_null_condition_is_broadcast_to_each_leaf_of_a_pytree():
    def styled_field(t, x, cond):
        return field(t, x, cond["label"]) * cond["style"]

    cond = {"label": LABELS, "style": X + 1.0}
    null = {"label": NULL, "style": jnp.array([1.0, 2.0, 3.0])}
    unconditional = styled_field(
        T, X, {"label": jnp.full(8, NULL), "style": jnp.tile(null["style"], (8, 1))}
    )
    guided = classifier_free(styled_field, null, 2.0)(T, X, cond)
    np.testing.assert_allclose(guided, 2.0 * styled_field(T, X, cond) - unconditional, atol=1e-6)


def test_guidance_needs_no_communication_between_devices():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    batch_sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    guided = jax.jit(
        classifier_free(field, NULL, 3.0), in_shardings=batch_sharding, out_shardings=batch_sharding
    )
    program = guided.lower(T, X, LABELS).compile()
    for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert collective not in program.as_text()
    np.testing.assert_array_equal(
        program(*jax.device_put((T, X, LABELS), batch_sharding)),
        jax.jit(classifier_free(field, NULL, 3.0))(T, X, LABELS),
    )


@pytest.mark.parametrize(
    ("scale", "interval", "message"),
    [
        (-1.0, (0.0, 1.0), "guidance scale must be at least 0.0, got -1.0"),
        (float("nan"), (0.0, 1.0), "guidance scale must be at least 0.0, got nan"),
        (2.0, (0.6, 0.4), r"guidance interval must be low <= high in \[0, 1\], got \(0.6, 0.4\)"),
        (2.0, (-0.1, 0.4), r"guidance interval must be low <= high in \[0, 1\], got \(-0.1, 0.4\)"),
        (2.0, (0.1, 1.4), r"guidance interval must be low <= high in \[0, 1\], got \(0.1, 1.4\)"),
    ],
)
def test_invalid_scale_or_interval_is_refused(scale, interval, message):
    with pytest.raises(ValueError, match=message):
        classifier_free(field, NULL, scale, interval)


def test_guidance_without_condition_is_refused():
    guided = classifier_free(lambda t, x, cond: x, 10, 3.0)
    with pytest.raises(ValueError, match="cond must be given for guidance, got None"):
        guided(jnp.zeros(2), jnp.zeros((2, 3)), None)


PAIR = jnp.array([3, 4])
VALID_NULLS = [
    (PAIR, 10),
    (PAIR, np.int64(10)),
    (PAIR.astype(jnp.uint8), 10),
    (PAIR, 10.0),
    (PAIR, np.array([7, 8])),
    (jnp.ones((2, 3)), 0),
    (jnp.ones((2, 3)), np.array([0.1, 0.2, 0.3])),
    (jnp.ones((2, 3), jnp.bfloat16), 0.5),
    (jnp.array([True, False]), False),
]
INVALID_NULLS = [
    (PAIR, 0.5, "int32 values like the condition, got 0.5"),
    (PAIR, True, "int32 values like the condition, got True"),
    (PAIR, 2**40, "int32 values like the condition, got 1099511627776"),
    (PAIR, jnp.array([10.0, 0.5]), r"int32 values like the condition, got \[10.   0.5\]"),
    (PAIR.astype(jnp.uint8), 256, "uint8 values like the condition, got 256"),
    (PAIR.astype(jnp.uint8), -1, "uint8 values like the condition, got -1"),
    (PAIR, float("nan"), "int32 values like the condition, got nan"),
    (PAIR, None, "numbers like the condition, got None"),
    (PAIR, "none", "numbers like the condition, got 'none'"),
    (jnp.ones((2, 3)), True, "float32 values like the condition, got True"),
    (jnp.ones((2, 3)), 1e300, r"float32 values like the condition, got 1e\+300"),
    (jnp.array([True, False]), 0.5, "bool values like the condition, got 0.5"),
]


@pytest.mark.parametrize(("cond", "null"), VALID_NULLS)
def test_null_condition_keeps_its_value(cond, null):
    result = null_like({"c": cond}, {"c": null})["c"]
    assert (result.dtype, result.shape) == (cond.dtype, cond.shape)
    np.testing.assert_array_equal(
        result, jnp.broadcast_to(jnp.asarray(null, cond.dtype), cond.shape)
    )
    # Training replaces dropped conditions by the same value.
    dropped = drop_condition(jax.random.key(0), cond, null, 1.0)
    np.testing.assert_array_equal(dropped, result)


@pytest.mark.parametrize(("cond", "null", "message"), INVALID_NULLS)
def test_null_condition_outside_the_dtype_is_refused(cond, null, message):
    guided = classifier_free(lambda t, x, c: x, null, 2.0)
    with pytest.raises(ValueError, match=f"^null_cond must hold {message}"):
        guided(jnp.zeros(2), jnp.ones((2, 1)), cond)
    if null is not None:
        with pytest.raises(ValueError, match=f"^null_cond must hold {message}"):
            drop_condition(jax.random.key(0), cond, null, 0.5)


def test_null_condition_of_wrong_structure_or_shape_is_refused():
    with pytest.raises(
        ValueError, match="null_cond must have the structure of the condition, .*, got a tuple"
    ):
        null_like((PAIR, PAIR), (1, 2, 3))
    with pytest.raises(ValueError, match=r"null_cond must broadcast to shape \(2,\), got int"):
        null_like(PAIR, np.arange(3))
    with pytest.raises(ValueError, match=r"null_cond must broadcast to shape \(2,\), got int"):
        null_like(PAIR, np.array([[10]]))


def test_labels_beyond_int32_are_refused():
    with pytest.raises(ValueError, match="cond must hold integers of int32, got 3 to 4294967299"):
        require_cond(np.array([3, 2**32 + 3]))
    require_cond(np.array([3, 4]))
