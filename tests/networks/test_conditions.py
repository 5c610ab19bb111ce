"""Tests of networks with vectors, images, sequences and dicts as conditions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fmjax._arrays import TextShape
from fmjax._specs import NULL_NUMBER, Spec, abstract_cond, class_spec, null_cond, token_spec
from fmjax.networks import (
    DiTConfig,
    FluxConfig,
    MLPConfig,
    MMDiTConfig,
    SequenceTransformerConfig,
    UNetConfig,
    make_flow_map,
    make_network,
)
from fmjax.networks.layers.conditions import join_conditions
from fmjax.paths import VelocityNet
from tests.networks.test_contract import perturbed

BATCH = 8
MLP = MLPConfig(width=16, num_layers=1)
DIT = DiTConfig(patch_size=2, width=16, num_layers=1, num_heads=2)
SEQUENCE = SequenceTransformerConfig(width=16, num_layers=1, num_heads=2)
UNET = UNetConfig(8, (1,), 1, attention_resolutions=(4,), head_width=8)
MIXED = {
    "goal": {"x": Spec(()), "pose": Spec((3,))},
    "observation.history": Spec((2, 3)),
    "task": class_spec(4),
}
CASES = {
    "mlp vector": (MLP, (2,), Spec((3,))),
    "mlp mixed": (MLP, (2,), MIXED),
    "dit image": (DIT, (4, 4, 1), Spec((4, 4, 2))),
    "dit mixed": (DIT, (4, 4, 1), MIXED | {"camera": Spec((4, 4, 3)), "depth": Spec((4, 4, 1))}),
    "unet mixed": (UNET, (4, 4, 1), MIXED | {"camera": Spec((4, 4, 3))}),
    "sequence mixed": (SEQUENCE, (5, 2), MIXED | {"plan": Spec((5, 3))}),
}
SLOW = ("mlp vector", "dit image", "unet mixed")
CASE_PARAMS = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES]


def conditions_of(spec, seed=0):
    """Sample random conditions; the last example has the null condition."""
    rng = np.random.default_rng(seed)

    def values(struct, null):
        if jnp.issubdtype(struct.dtype, jnp.integer):
            leaf = np.arange(BATCH, dtype=np.int32) % null
        else:
            leaf = rng.standard_normal(struct.shape).astype(np.float32)
        leaf[-1] = null
        return leaf

    return jax.tree.map(values, abstract_cond(spec, BATCH), null_cond(spec))


class Case:
    def __init__(self, config, event_shape, spec):
        self.net, self.spec = make_network(config, event_shape, spec), spec
        self.init_params = self.net.init(jax.random.key(0))
        rng = np.random.default_rng(1)
        self.t = rng.uniform(size=BATCH).astype(np.float32)
        self.x = rng.standard_normal((BATCH, *event_shape), np.float32)
        self.cond = conditions_of(spec)
        weights = rng.standard_normal(self.x.shape, np.float32)

        def evaluate(params, t, x, cond):
            def loss(params):
                out = self.net.apply(params, t, x, cond)
                return jnp.sum(out * weights), out

            grads, out = jax.grad(loss, has_aux=True)(params)
            return out, grads

        self.evaluate = jax.jit(evaluate)
        self.params = perturbed(self.init_params)

    def out(self, cond):
        return np.asarray(self.evaluate(self.params, self.t, self.x, cond)[0])


@pytest.fixture(scope="module", params=CASE_PARAMS)
def case(request):
    return Case(*CASES[request.param])


def test_output_is_zero_at_initialization(case):
    out, _ = case.evaluate(case.init_params, case.t, case.x, case.cond)
    np.testing.assert_array_equal(out, 0.0)
    assert out.shape == case.x.shape


def test_each_example_depends_on_each_array_of_its_own_condition_only(case):
    before = case.out(case.cond)
    assert np.all(np.isfinite(before))
    leaves, tree = jax.tree.flatten(case.cond)
    for index, leaf in enumerate(leaves):
        for position in np.ndindex(leaf.shape[1:]):
            changed = leaf.copy()
            changed[(2, *position)] = (1 + leaf[(2, *position)]) % 4
            cond = tree.unflatten([*leaves[:index], changed, *leaves[index + 1 :]])
            differences = np.abs(case.out(cond) - before).reshape(BATCH, -1).max(-1)
            assert differences[2] > 1e-5, (index, position)
            np.testing.assert_array_equal(np.delete(differences, 2), 0.0)


def test_null_condition_differs_from_zeros_and_hides_the_values(case):
    leaves, tree = jax.tree.flatten(case.cond)
    before = case.out(case.cond)
    for index, leaf in enumerate(leaves):
        zeros = leaf.copy()
        zeros[-1] = 0
        cond = tree.unflatten([*leaves[:index], zeros, *leaves[index + 1 :]])
        assert np.abs(case.out(cond)[-1] - before[-1]).max() > 1e-5, index


def test_every_parameter_has_a_nonzero_gradient(case):
    _, grads = case.evaluate(case.params, case.t, case.x, case.cond)
    for key_path, grad in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(key_path)
        assert np.all(np.isfinite(grad)), name
        assert np.max(np.abs(grad)) > 0, name


@pytest.mark.slow
def test_eight_devices_match_one_device(case):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params = jax.device_put(case.params, NamedSharding(mesh, PartitionSpec()))
    inputs = (case.t, case.x, case.cond)
    inputs = jax.device_put(inputs, NamedSharding(mesh, PartitionSpec("data")))
    out, grads = case.evaluate(params, *inputs)
    assert len(out.sharding.device_set) == 8
    expected, expected_grads = case.evaluate(case.params, case.t, case.x, case.cond)
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-5)
    for grad, value in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        atol = 1e-4 * max(1.0, float(np.max(np.abs(value))))
        np.testing.assert_allclose(grad, value, rtol=1e-3, atol=atol)


def test_embedding_of_a_vector_follows_its_formula():
    net = make_network(MLP, (2,), Spec((3,)))
    # With zeros for the time MLP, the embedding of the condition is all that the blocks receive.
    embed = net.init(jax.random.key(0))["embed"]["cond"]
    kernels = {name: np.asarray(embed[name]["kernel"]) for name in ("hidden", "out")}
    assert {name: k.shape for name, k in kernels.items()} == {"hidden": (3, 16), "out": (16, 16)}
    assert embed["null"].shape == (16,)
    # The hidden layer keeps the variance of a standardized vector: 1 / 3 for each weight.
    assert 0.5 < 3 * kernels["hidden"].var() < 2.0


def test_images_are_joined_with_a_channel_that_marks_what_is_given():
    x = jnp.ones((2, 2, 2, 1))
    image = np.arange(16, dtype=np.float32).reshape(2, 2, 2, 2)
    image[1] = NULL_NUMBER
    joined = join_conditions(x, {"camera": jnp.asarray(image)}, (("camera",),))
    np.testing.assert_array_equal(joined[0, ..., 1:3], image[0])
    np.testing.assert_array_equal(joined[:, ..., 3], [np.ones((2, 2)), np.zeros((2, 2))])
    np.testing.assert_array_equal(joined[1, ..., 1:3], 0.0)
    np.testing.assert_array_equal(joined[..., :1], x)


def test_flow_map_with_a_dict_of_conditions_starts_as_the_velocity_network():
    spec = MIXED | {"camera": Spec((4, 4, 3))}
    net, flow_map = make_network(DIT, (4, 4, 1), spec), make_flow_map(DIT, (4, 4, 1), spec)
    params = perturbed(flow_map.init(jax.random.key(0)))
    shared = {**params, "embed": {k: v for k, v in params["embed"].items() if k != "span"}}
    params["embed"]["span"] = jax.tree.map(jnp.zeros_like, params["embed"]["span"])
    rng, t, cond = np.random.default_rng(0), np.full(BATCH, 0.3, np.float32), conditions_of(spec)
    x = rng.standard_normal((BATCH, 4, 4, 1), np.float32)
    velocity, jump = jax.jit(
        lambda t, x, cond: (
            net.apply(shared, t, x, cond),
            flow_map.apply(params, t + 0.5, t, x, cond),
        )
    )(t, x, cond)
    np.testing.assert_allclose(jump, velocity, atol=1e-5)
    assert np.abs(velocity).max() > 0.1


@dataclasses.dataclass(frozen=True)
class Shift:
    """A network of a user that adds the condition to x."""

    def make(self, event_shape, conditions):
        def apply(params, t, x, cond=None):
            return x + cond["goal"] + params["w"] * cond["task"][:, None]

        return VelocityNet(lambda key: {"w": jnp.ones(())}, apply)


def test_networks_of_users_receive_zeros_for_floats_that_are_not_given():
    spec = {"goal": Spec((2,)), "task": class_spec(5)}
    net = make_network(Shift(), (2,), spec)
    cond = {"goal": jnp.array([[1.0, 2.0], [NULL_NUMBER] * 2]), "task": jnp.array([0, 5])}
    out = net.apply({"w": 1.0}, jnp.zeros(2), jnp.zeros((2, 2)), cond)
    np.testing.assert_array_equal(out, [[1.0, 2.0], [5.0, 5.0]])


REFUSED = [
    (MLP, (2,), Spec((4, 4, 1)), r"conditions must be labels, vectors or sequences for an MLP, "),
    (
        DIT,
        (4, 4, 1),
        {"camera": Spec((8, 8, 3))},
        r"conditions\['camera'\] must be labels, vectors, sequences or images of 4x4 pixels for a "
        r"DiT, got image of shape \(8, 8, 3\)",
    ),
    (
        UNET,
        (4, 4, 1),
        {"a": {"words": token_spec(4, 16)}},
        r"conditions\['a'\]\['words'\] must be labels, .* for a UNet, got tokens of shape \(4,\)",
    ),
    (SEQUENCE, (5, 2), {"camera": Spec((5, 2, 1))}, "for a transformer on sequences, got image"),
    (MLP, (2,), {"text": TextShape(2, 3, 4)}, r"conditions\['text'\] must be labels, .* got text"),
    (MLP, (2,), TextShape(2, 3, 4), "network must be a FluxConfig or MMDiTConfig for text"),
    (FluxConfig(), (4, 4, 4), Spec((3,)), "conditions must be text .* for a FLUX network, got"),
    (MMDiTConfig(), (4, 4, 4), MIXED, "conditions must be text .* for an MM-DiT network, got"),
]


@pytest.mark.parametrize(("config", "event_shape", "spec", "message"), REFUSED)
def test_conditions_that_a_network_does_not_take_are_refused(config, event_shape, spec, message):
    with pytest.raises(ValueError, match=message) as error:
        make_network(config, event_shape, spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "cond", "message"),
    [
        (Spec((3,)), None, r"cond must be floats of shape \(8, 3\), got None"),
        (Spec((3,)), np.zeros((8, 2), np.float32), r"got float32 of shape \(8, 2\)"),
        (Spec((3,)), np.zeros((8, 3), np.int32), r"got int32 of shape \(8, 3\)"),
        (Spec((3,)), {"a": np.zeros((8, 3), np.float32)}, "cond must be floats .* got a dict"),
        ({"a": Spec((3,))}, None, r"cond must be a dict of arrays: cond\['a'\], got None"),
        (
            {"a": Spec((3,)), "b": class_spec(2)},
            {"a": np.zeros((8, 3), np.float32)},
            r"cond must be a dict of arrays: cond\['a'\], cond\['b'\], got cond\['a'\]",
        ),
        (
            {"b": class_spec(2)},
            {"b": np.zeros(8, np.float32)},
            r"cond\['b'\] must be class labels, integers of shape \(8,\), got float32",
        ),
        (None, {"a": np.zeros(8, np.float32)}, "cond must be None for a network without cond"),
    ],
)
def test_conditions_unlike_the_description_are_refused(spec, cond, message):
    net = make_network(MLP, (2,), spec)
    params = jax.eval_shape(net.init, jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            net.apply, params, np.zeros(8, np.float32), np.zeros((8, 2), np.float32), cond
        )
