"""Tests of couplings: permutations, exact plans from SciPy, conditions and meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from fmjax.paths import Coupling, Independent, MinibatchOT, squared_distances

BATCH = 32
COUPLINGS = {
    "independent": Independent(),
    "global": MinibatchOT(),
    "shard": MinibatchOT("shard"),
    "light condition": MinibatchOT(condition_weight=0.01),
}


def sample_batch(seed=0, batch=BATCH):
    """Return x0, x1, labels of three unequal classes, and float conditions."""
    keys = jax.random.split(jax.random.key(seed), 4)
    x0 = jax.random.normal(keys[0], (batch, 2))
    labels = jnp.sort(jax.random.choice(keys[1], 3, (batch,), p=jnp.array([0.6, 0.3, 0.1])))
    labels = jax.random.permutation(keys[2], labels)
    # The classes of x1 are far apart, so a plan without labels sorts the noise by class.
    x1 = 4.0 * (labels[:, None] - 1) + 0.5 * jax.random.normal(keys[3], (batch, 2))
    return x0, x1, labels, x1[:, :1] + x0[:, 1:]


JITTED = {name: jax.jit(coupling) for name, coupling in COUPLINGS.items()}
X0, X1, LABELS, FLOATS = sample_batch()


def scipy_plan(x0, x1, extra=0.0):
    """Return x0 reordered by the optimal plan of an exact solver in float64."""
    x0, x1 = np.asarray(x0), np.asarray(x1)
    sources, targets = linear_sum_assignment(cdist(x0, x1, "sqeuclidean") + extra)
    reordered = np.empty_like(x0)
    reordered[targets] = x0[sources]
    return reordered


def original_rows(reordered, x0):
    """Return the index in `x0` of each row of `reordered`; check that it is unique."""
    equal = (np.asarray(reordered)[:, None] == np.asarray(x0)[None]).all(-1)
    assert (equal.sum(axis=1) == 1).all()
    return equal.argmax(axis=1)


@pytest.mark.parametrize("name", COUPLINGS)
def test_coupling_permutes_source_points(name):
    assert isinstance(COUPLINGS[name], Coupling)
    for cond in (None, LABELS):
        rows = original_rows(JITTED[name](X0, X1, cond), X0)
        np.testing.assert_array_equal(np.sort(rows), np.arange(BATCH))


def test_independent_coupling_is_identity():
    assert Independent()(X0, X1, LABELS) is X0


def test_global_plan_is_optimal():
    # The optimal plan of random points is unique, by a margin far above rounding errors.
    for seed in range(4):
        x0, x1, _, _ = sample_batch(seed)
        plan = JITTED["global"](x0, x1, None)
        np.testing.assert_array_equal(plan, scipy_plan(x0, x1))
        assert ((plan - x1) ** 2).sum() < ((x0 - x1) ** 2).sum()


def test_plan_of_images_uses_all_pixels():
    x0, x1 = jax.random.normal(jax.random.key(3), (2, BATCH, 4, 4, 3))
    plan = JITTED["global"](x0, x1, None)
    expected = scipy_plan(x0.reshape(BATCH, -1), x1.reshape(BATCH, -1))
    np.testing.assert_array_equal(plan.reshape(BATCH, -1), expected)


def test_plan_with_labels_is_optimal_within_each_class():
    plan = JITTED["global"](X0, X1, LABELS)
    for label in range(3):
        rows = np.flatnonzero(label == LABELS)
        assert len(rows) > 1
        np.testing.assert_array_equal(plan[rows], scipy_plan(X0[rows], X1[rows]))


def test_float_conditions_add_their_weighted_distance():
    extra = 0.01 * cdist(FLOATS, FLOATS, "sqeuclidean")
    plan = JITTED["light condition"](X0, X1, FLOATS)
    np.testing.assert_array_equal(plan, scipy_plan(X0, X1, extra))
    assert (plan != JITTED["global"](X0, X1, None)).any()


def test_distant_float_conditions_do_not_mix_labels():
    # A plan that mixes labels would be cheaper if the label cost did not exceed these distances.
    cond = {"label": LABELS, "place": 100.0 * X0}
    rows = original_rows(JITTED["global"](X0, X1, cond), X0)
    np.testing.assert_array_equal(LABELS[rows], LABELS)


def test_multi_component_labels_must_all_match():
    label_pairs = jnp.stack([LABELS % 2, LABELS // 2], axis=1)
    np.testing.assert_array_equal(
        JITTED["global"](X0, X1, label_pairs), JITTED["global"](X0, X1, LABELS)
    )


def test_zero_condition_weight_ignores_conditions():
    plan = jax.jit(MinibatchOT(condition_weight=0.0))(X0, X1, LABELS)
    np.testing.assert_array_equal(plan, JITTED["global"](X0, X1, None))


def test_noise_is_independent_of_label_only_in_conditional_plan():
    @jax.jit
    def signs(key):
        label_key, noise_key, data_key = jax.random.split(key, 3)
        labels = jax.random.bernoulli(label_key, 0.5, (BATCH,)).astype(jnp.int32)
        x0 = jax.random.normal(noise_key, (BATCH, 1))
        x1 = 4.0 * labels[:, None] - 2.0 + jax.random.normal(data_key, (BATCH, 1))
        plans = [MinibatchOT()(x0, x1, cond) for cond in (labels, None)]
        return labels, [jnp.sign(plan[:, 0]) for plan in (x0, *plans)]

    labels, (unpaired, conditional, unconditional) = jax.lax.map(
        signs, jax.random.split(jax.random.key(0), 64)
    )

    def joint_counts(sign):
        return np.array([[((sign == s) & (labels == c)).sum() for s in (-1, 1)] for c in (0, 1)])

    # Noise moves only within its class, so the joint counts do not change.
    np.testing.assert_array_equal(joint_counts(conditional), joint_counts(unpaired))
    # For 2,048 pairs, a correlation above 4 / sqrt(2048) = 0.09 has probability 6e-5.
    assert abs(np.corrcoef(conditional.ravel(), labels.ravel())[0, 1]) < 0.09
    # Without labels, most positive noise is paired with the positive class.
    assert np.corrcoef(unconditional.ravel(), labels.ravel())[0, 1] > 0.7


def test_nonfinite_cost_gives_permutation():
    # The training step reports nonfinite values; the coupling must not hang before that.
    for value in (jnp.nan, jnp.inf):
        plan = JITTED["global"](X0, X1.at[3].set(value), None)
        np.testing.assert_array_equal(np.sort(original_rows(plan, X0)), np.arange(BATCH))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (1e4, 1e4), (0.0, 1e4), (-1e4, 1e4)])
def test_plan_cost_is_minimal_at_any_shift_and_scale(shift, scale):
    for seed in range(3):
        x0, x1, _, _ = sample_batch(seed)
        x0, x1 = scale * (x0 + shift[0]), scale * (x1 + shift[1])
        # Two distant clusters remain far from the origin after subtraction of the mean.
        offset = scale * 1e4 * (jnp.arange(BATCH)[:, None] % 2)
        for x0, x1 in ((x0, x1), (x0 + offset, x1 + offset)):  # noqa: B020, PLW2901
            plan, optimal = JITTED["global"](x0, x1, None), scipy_plan(x0, x1)
            cost, min_cost = (
                np.sum(np.square(np.asarray(rows, np.float64) - np.asarray(x1, np.float64)))
                for rows in (plan, optimal)
            )
            assert cost <= min_cost * (1.0 + 1e-5)


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_condition_cost_is_shift_invariant(shift):
    cond = FLOATS + shift
    extra = 0.01 * cdist(cond, cond, "sqeuclidean")
    np.testing.assert_array_equal(
        JITTED["light condition"](X0, X1, cond), scipy_plan(X0, X1, extra)
    )


def test_squared_distances_of_float64_points_are_float64():
    with jax.enable_x64():
        x, y = (np.asarray(points, np.float64) for points in (X0 + 1e6, X1 + 1e6))
        np.testing.assert_allclose(
            squared_distances(jnp.asarray(x), jnp.asarray(y)),
            cdist(x, y, "sqeuclidean"),
            rtol=1e-12,
        )


def test_squared_distances_match_scipy():
    np.testing.assert_allclose(
        squared_distances(X0, X1), cdist(X0, X1, "sqeuclidean"), rtol=1e-5, atol=1e-5
    )
    assert (squared_distances(X1, X1) >= 0).all()


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def plan_on_mesh(mesh, coupling, cond):
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    with jax.set_mesh(mesh):
        plan = jax.jit(coupling, in_shardings=rows, out_shardings=rows)(X0, X1, cond)
    assert plan.sharding.is_equivalent_to(rows, 2)
    return np.asarray(plan)


def test_global_plan_on_eight_devices_equals_single_device_plan(mesh):
    plan = plan_on_mesh(mesh, MinibatchOT(), LABELS)
    np.testing.assert_array_equal(plan, JITTED["global"](X0, X1, LABELS))


@pytest.mark.parametrize("cond", [None, LABELS % 2], ids=["without labels", "with labels"])
def test_shard_plan_equals_separate_plan_of_each_device(mesh, cond):
    plan = plan_on_mesh(mesh, MinibatchOT("shard"), cond)
    couple = jax.jit(MinibatchOT())
    for start in range(0, BATCH, BATCH // 8):
        rows = slice(start, start + BATCH // 8)
        expected = couple(X0[rows], X1[rows], None if cond is None else cond[rows])
        np.testing.assert_array_equal(plan[rows], expected)
    assert (plan != JITTED["global"](X0, X1, cond)).any()


def test_shard_plan_without_mesh_equals_global_plan():
    np.testing.assert_array_equal(JITTED["shard"](X0, X1, LABELS), JITTED["global"](X0, X1, LABELS))


def test_batch_size_not_divisible_by_shards_is_refused(mesh):
    message = "batch size must be divisible by 8, the number of shards, got 12"
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=message):
        MinibatchOT("shard")(X0[:12], X1[:12])


@pytest.mark.usefixtures("unchecked")
def test_invalid_coupling_settings_are_refused():
    with pytest.raises(ValueError, match="scope must be global or shard, got local"):
        MinibatchOT("local")
    with pytest.raises(ValueError, match="condition_weight must be at least 0.0, got -1.0"):
        MinibatchOT(condition_weight=-1.0)
