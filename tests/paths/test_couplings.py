"""Couplings: permutations, exact plans by scipy, conditions kept, meshes."""

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


def draw(seed=0, batch=BATCH):
    """(x0, x1, labels of three uneven classes, float conditions)."""
    keys = jax.random.split(jax.random.key(seed), 4)
    x0 = jax.random.normal(keys[0], (batch, 2))
    labels = jnp.sort(jax.random.choice(keys[1], 3, (batch,), p=jnp.array([0.6, 0.3, 0.1])))
    labels = jax.random.permutation(keys[2], labels)
    # Targets far apart by class: plain transport would sort the noise by class.
    x1 = 4.0 * (labels[:, None] - 1) + 0.5 * jax.random.normal(keys[3], (batch, 2))
    return x0, x1, labels, x1[:, :1] + x0[:, 1:]


COUPLE = {name: jax.jit(coupling) for name, coupling in COUPLINGS.items()}
X0, X1, LABELS, FLOATS = draw()


def scipy_plan(x0, x1, extra=0.0):
    """The sources, reordered, by an exact solver in float64."""
    x0, x1 = np.asarray(x0), np.asarray(x1)
    sources, targets = linear_sum_assignment(cdist(x0, x1, "sqeuclidean") + extra)
    reordered = np.empty_like(x0)
    reordered[targets] = x0[sources]
    return reordered


def origins(reordered, x0):
    """For each row of `reordered` the row of `x0` it was; fails unless there is exactly one."""
    same = (np.asarray(reordered)[:, None] == np.asarray(x0)[None]).all(-1)
    assert (same.sum(axis=1) == 1).all()
    return same.argmax(axis=1)


@pytest.mark.parametrize("name", COUPLINGS)
def test_a_coupling_only_reorders_the_sources(name):
    assert isinstance(COUPLINGS[name], Coupling)
    for cond in (None, LABELS):
        rows = origins(COUPLE[name](X0, X1, cond), X0)
        np.testing.assert_array_equal(np.sort(rows), np.arange(BATCH))


def test_independent_points_stay_where_they_are():
    assert Independent()(X0, X1, LABELS) is X0


def test_the_plan_is_the_exact_one():
    # Random points: the best plan is unique, and better than the next by far more than rounding.
    for seed in range(4):
        x0, x1, _, _ = draw(seed)
        plan = COUPLE["global"](x0, x1, None)
        np.testing.assert_array_equal(plan, scipy_plan(x0, x1))
        assert ((plan - x1) ** 2).sum() < ((x0 - x1) ** 2).sum()


def test_the_plan_of_images_is_over_all_their_pixels():
    x0, x1 = jax.random.normal(jax.random.key(3), (2, BATCH, 4, 4, 3))
    plan = COUPLE["global"](x0, x1, None)
    flat = scipy_plan(x0.reshape(BATCH, -1), x1.reshape(BATCH, -1))
    np.testing.assert_array_equal(plan.reshape(BATCH, -1), flat)


def test_with_labels_the_plan_is_that_of_each_class_alone():
    plan = COUPLE["global"](X0, X1, LABELS)
    for label in range(3):
        rows = np.flatnonzero(label == LABELS)
        assert len(rows) > 1
        np.testing.assert_array_equal(plan[rows], scipy_plan(X0[rows], X1[rows]))


def test_float_conditions_add_their_weighted_distance():
    extra = 0.01 * cdist(FLOATS, FLOATS, "sqeuclidean")
    plan = COUPLE["light condition"](X0, X1, FLOATS)
    np.testing.assert_array_equal(plan, scipy_plan(X0, X1, extra))
    assert (plan != COUPLE["global"](X0, X1, None)).any()


def test_labels_are_kept_apart_however_far_other_conditions_lie():
    # Far floats would pay for mixing the labels, were labels not charged on top of them.
    cond = {"label": LABELS, "place": 100.0 * X0}
    rows = origins(COUPLE["global"](X0, X1, cond), X0)
    np.testing.assert_array_equal(LABELS[rows], LABELS)


def test_labels_of_several_numbers_must_all_agree():
    pairs = jnp.stack([LABELS % 2, LABELS // 2], axis=1)
    np.testing.assert_array_equal(COUPLE["global"](X0, X1, pairs), COUPLE["global"](X0, X1, LABELS))


def test_a_condition_without_weight_changes_nothing():
    plan = jax.jit(MinibatchOT(condition_weight=0.0))(X0, X1, LABELS)
    np.testing.assert_array_equal(plan, COUPLE["global"](X0, X1, None))


def test_noise_stays_independent_of_the_label_only_if_the_plan_knows_the_label():
    @jax.jit
    def signs(key):
        label_key, noise_key, data_key = jax.random.split(key, 3)
        labels = jax.random.bernoulli(label_key, 0.5, (BATCH,)).astype(jnp.int32)
        x0 = jax.random.normal(noise_key, (BATCH, 1))
        x1 = 4.0 * labels[:, None] - 2.0 + jax.random.normal(data_key, (BATCH, 1))
        plans = [MinibatchOT()(x0, x1, cond) for cond in (labels, None)]
        return labels, [jnp.sign(plan[:, 0]) for plan in (x0, *plans)]

    labels, (drawn, with_label, without) = jax.lax.map(
        signs, jax.random.split(jax.random.key(0), 64)
    )

    def joint(sign):
        return np.array([[((sign == s) & (labels == c)).sum() for s in (-1, 1)] for c in (0, 1)])

    # Noise moves within its class, so the joint counts are those of the independent draw itself.
    np.testing.assert_array_equal(joint(with_label), joint(drawn))
    # In 2,048 pairs a correlation of 4 / sqrt(2048) = 0.09 has probability 6e-5.
    assert abs(np.corrcoef(with_label.ravel(), labels.ravel())[0, 1]) < 0.09
    # Without it most noise on the right goes to the class on the right.
    assert np.corrcoef(without.ravel(), labels.ravel())[0, 1] > 0.7


def test_a_cost_that_is_not_finite_still_ends_in_a_permutation():
    # The training step reports what is not finite; the coupling must not hang before it.
    for bad in (jnp.nan, jnp.inf):
        plan = COUPLE["global"](X0, X1.at[3].set(bad), None)
        np.testing.assert_array_equal(np.sort(origins(plan, X0)), np.arange(BATCH))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (1e4, 1e4), (0.0, 1e4), (-1e4, 1e4)])
def test_the_cost_of_a_plan_is_the_least_wherever_the_points_lie_and_in_any_unit(shift, scale):
    for seed in range(3):
        x0, x1, _, _ = draw(seed)
        x0, x1 = scale * (x0 + shift[0]), scale * (x1 + shift[1])
        # Points on both sides of a gap: about their common mean they are far away again.
        apart = scale * 1e4 * (jnp.arange(BATCH)[:, None] % 2)
        for x0, x1 in ((x0, x1), (x0 + apart, x1 + apart)):  # noqa: B020, PLW2901
            plan, best = COUPLE["global"](x0, x1, None), scipy_plan(x0, x1)
            cost, least = (
                np.sum(np.square(np.asarray(rows, np.float64) - np.asarray(x1, np.float64)))
                for rows in (plan, best)
            )
            assert cost <= least * (1.0 + 1e-5)


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_conditions_count_by_their_differences_wherever_they_lie(shift):
    cond = FLOATS + shift
    extra = 0.01 * cdist(cond, cond, "sqeuclidean")
    np.testing.assert_array_equal(
        COUPLE["light condition"](X0, X1, cond), scipy_plan(X0, X1, extra)
    )


def test_distances_of_float64_points_are_float64():
    with jax.enable_x64():
        x, y = (np.asarray(points, np.float64) for points in (X0 + 1e6, X1 + 1e6))
        np.testing.assert_allclose(
            squared_distances(jnp.asarray(x), jnp.asarray(y)),
            cdist(x, y, "sqeuclidean"),
            rtol=1e-12,
        )


def test_squared_distances_are_those_of_scipy():
    np.testing.assert_allclose(
        squared_distances(X0, X1), cdist(X0, X1, "sqeuclidean"), rtol=1e-5, atol=1e-5
    )
    assert (squared_distances(X1, X1) >= 0).all()


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def on_mesh(mesh, coupling, cond):
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    with jax.set_mesh(mesh):
        plan = jax.jit(coupling, in_shardings=rows, out_shardings=rows)(X0, X1, cond)
    assert plan.sharding.is_equivalent_to(rows, 2)
    return np.asarray(plan)


def test_the_global_plan_on_eight_devices_is_that_of_one_bit_for_bit(mesh):
    plan = on_mesh(mesh, MinibatchOT(), LABELS)
    np.testing.assert_array_equal(plan, COUPLE["global"](X0, X1, LABELS))


@pytest.mark.parametrize("cond", [None, LABELS % 2], ids=["without labels", "with labels"])
def test_the_plan_of_shards_is_that_of_each_devices_rows_alone(mesh, cond):
    plan = on_mesh(mesh, MinibatchOT("shard"), cond)
    alone = jax.jit(MinibatchOT())
    for start in range(0, BATCH, BATCH // 8):
        rows = slice(start, start + BATCH // 8)
        part = alone(X0[rows], X1[rows], None if cond is None else cond[rows])
        np.testing.assert_array_equal(plan[rows], part)
    assert (plan != COUPLE["global"](X0, X1, cond)).any()


def test_without_a_mesh_all_rows_are_one_shard():
    np.testing.assert_array_equal(COUPLE["shard"](X0, X1, LABELS), COUPLE["global"](X0, X1, LABELS))


def test_a_batch_that_shards_do_not_divide_is_refused(mesh):
    message = "batch size must be divisible by 8, the number of shards, got 12"
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=message):
        MinibatchOT("shard")(X0[:12], X1[:12])


@pytest.mark.usefixtures("unchecked")
def test_a_coupling_without_sense_is_refused():
    with pytest.raises(ValueError, match="scope must be global or shard, got local"):
        MinibatchOT("local")
    with pytest.raises(ValueError, match="condition_weight must be at least 0.0, got -1.0"):
        MinibatchOT(condition_weight=-1.0)
