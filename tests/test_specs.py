"""Tests of the specs of examples and conditions."""

import json

import jax.numpy as jnp
import pytest

from fmjax._arrays import Text, TextShape
from fmjax._specs import (
    NULL_NUMBER,
    Spec,
    abstract_cond,
    as_cond_spec,
    class_spec,
    cond_spec_json,
    is_given,
    null_cond,
    num_classes,
    read_cond_spec,
    token_spec,
)

MIXED = {"pose": Spec((3,)), "camera": Spec((8, 8, 3)), "task": class_spec(5)}
KINDS = [None, class_spec(3), token_spec(4, 16), Spec((8,)), TextShape(2, 3, 4), MIXED]


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (Spec((28, 28, 1)), "image"),
        (Spec((8, 8, 4)), "latent"),
        (Spec((8,)), "vector"),
        (Spec((16, 7)), "sequence"),
        (class_spec(10), "label"),
        (token_spec(4, 16), "tokens"),
    ],
)
def test_kind_follows_from_shape_and_type(spec, kind):
    assert spec.kind == kind


@pytest.mark.parametrize("conditions", KINDS)
def test_json_round_trip(conditions):
    document = json.loads(json.dumps(cond_spec_json(conditions)))
    assert read_cond_spec(document, "conditions") == conditions


def test_abstract_conditions_have_the_structure_of_the_condition():
    structs = abstract_cond(MIXED, 2)
    assert {name: (s.shape, s.dtype) for name, s in structs.items()} == {
        "pose": ((2, 3), jnp.float32),
        "camera": ((2, 8, 8, 3), jnp.float32),
        "task": ((2,), jnp.int32),
    }
    assert isinstance(abstract_cond(TextShape(2, 3, 4), 5), Text)
    assert abstract_cond(None, 2) is None


def test_null_condition_is_no_possible_condition():
    assert null_cond(MIXED) == {"pose": NULL_NUMBER, "camera": NULL_NUMBER, "task": 5}
    assert null_cond(TextShape(2, 3, 4)) == Text(0.0, 0.0)
    for dtype in (jnp.bfloat16, jnp.float32):
        assert not is_given(jnp.asarray(NULL_NUMBER, dtype))
    assert jnp.all(is_given(jnp.array([0.0, -1e29, 1e38])))
    assert null_cond(10) == 10
    assert null_cond(token_spec(4, 16)) == 0


def test_number_of_classes():
    assert num_classes(as_cond_spec(10)) == 10
    assert num_classes(Spec((8,))) is None
    assert num_classes(MIXED) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Spec((0,)), "spec.shape must hold positive integers"),
        (lambda: Spec((2,), "int32"), "spec.num_values must be given for integers"),
        (lambda: Spec((2,), num_values=3), "spec.num_values must be given for integers"),
        (lambda: as_cond_spec({}), "conditions must hold at least one condition"),
        (lambda: read_cond_spec({"type": "os"}, "file"), "file must describe a condition"),
        (lambda: read_cond_spec([], "file"), "file must describe a condition"),
    ],
)
def test_invalid_specs_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
