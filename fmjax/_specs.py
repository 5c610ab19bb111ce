"""Shapes, types and kinds of the arrays of an example and of its condition."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from fmjax._arrays import Cond, Text, TextShape
from fmjax._checks import require
from fmjax._json import Size, check_json

NULL_NUMBER = -(2.0**100)
"""Element of a float condition that is not given, about -1.3e30; exact in every float type used."""

Kind = Literal["image", "latent", "vector", "sequence", "tokens", "label"]


@dataclass(frozen=True)
class Spec:
    """Shape, type and kind of one array of an example, without the batch axis.

    Attributes:
        shape: Shape of the array.
        dtype: Type of the array, "float32" or "int32".
        kind: Meaning of the array. None derives it from shape and type: floats of three axes are an
            image with one or three channels and a latent otherwise, of two axes a sequence
            `[time, channels]`, else a vector; a single integer is a label, several are tokens.
        num_values: Number of values of integers, which lie in `[0, num_values)`; None for floats.
    """

    shape: tuple[Size, ...] = ()
    dtype: Literal["float32", "int32"] = "float32"
    kind: Kind | None = None
    num_values: Size | None = None

    def __post_init__(self) -> None:
        sizes = all(isinstance(size, int) and size > 0 for size in self.shape)
        require(sizes, "spec.shape", "hold positive integers", self.shape)
        is_integer = self.dtype == "int32"
        rule = "be given for integers, and only for them"
        require(is_integer == (self.num_values is not None), "spec.num_values", rule, self)
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.kind is None:
            object.__setattr__(self, "kind", _kind(self.shape, is_integer))

    @property
    def size(self) -> int:
        """Number of elements of the array."""
        return math.prod(self.shape)

    @property
    def null(self) -> int | float:
        """Value of every element that stands for no condition.

        For a label this is `num_values`, one more than the highest label. For tokens it is 0, the
        padding. For floats it is `NULL_NUMBER`, because every ordinary number can be a condition.
        """
        if self.num_values is None:
            return NULL_NUMBER
        return self.num_values if self.kind == "label" else 0


def _kind(shape: tuple[int, ...], is_integer: bool) -> Kind:
    """Return the kind of an array of a shape."""
    if is_integer:
        return "label" if shape == () else "tokens"
    if len(shape) == 3:
        return "image" if shape[-1] in (1, 3) else "latent"
    return "sequence" if len(shape) == 2 else "vector"


CondSpec: TypeAlias = Spec | TextShape | Mapping[str, Any] | None
"""Description of a condition, with the structure of the condition.

A `Spec` for a single array (labels, tokens, a vector, an image), a dict of these for a dict of
arrays, a `TextShape` for encoded text, or None for an unconditional model.
"""


@dataclass(frozen=True)
class FlowMapConditions:
    """Conditions that a flow-map network takes in addition to the end time.

    Attributes:
        conditions: Condition of the data; None for an unconditional network.
        guided: Whether the network takes the guidance scale and interval as an input.
    """

    conditions: CondSpec = None
    guided: bool = False


def class_spec(num_classes: int) -> Spec:
    """Return the spec of a class label in `[0, num_classes)`."""
    return Spec((), "int32", "label", num_classes)


def token_spec(num_tokens: int, vocab_size: int) -> Spec:
    """Return the spec of `num_tokens` tokens in `[0, vocab_size)`."""
    return Spec((num_tokens,), "int32", "tokens", vocab_size)


def as_cond_spec(conditions: CondSpec | int) -> CondSpec:
    """Convert a number of classes to the spec of a class label; return other specs unchanged.

    Raises:
        ValueError: If the value does not describe a condition.
    """
    if isinstance(conditions, int):
        return class_spec(conditions)
    if isinstance(conditions, Mapping):
        rule = "hold at least one condition, with names that are strings"
        is_valid = len(conditions) > 0 and all(isinstance(name, str) for name in conditions)
        require(is_valid, "conditions", rule, conditions)
        return {name: as_cond_spec(conditions[name]) for name in sorted(conditions)}
    rule = "be a number of classes, a Spec, a dict of them, a TextShape or None"
    is_valid = conditions is None or isinstance(conditions, Spec | TextShape)
    require(is_valid, "conditions", rule, conditions)
    return conditions


def num_classes(conditions: CondSpec) -> int | None:
    """Return the number of classes if the condition is a class label, else None."""
    if isinstance(conditions, Spec) and conditions.kind == "label":
        return conditions.num_values
    return None


def is_captions(conditions: CondSpec) -> bool:
    """Return whether the condition is the tokens of a caption."""
    return isinstance(conditions, Spec) and conditions.kind == "tokens"


def has_arrays(conditions: CondSpec) -> bool:
    """Return whether the condition is numbers or a dict, which samples take from arrays.

    Labels and captions are chosen by class and prompt instead.
    """
    if isinstance(conditions, Spec):
        return conditions.num_values is None
    return isinstance(conditions, Mapping)


def named_arrays(cond: PyTree, name: str = "cond") -> dict[str, Any]:
    """Return the arrays, or specs, of a condition by name.

    Args:
        cond: An array or spec, a dict of them, or None.
        name: Name of a condition that is a single array. The arrays of a dict are called
            `NAME_KEY`; with an empty name, `KEY`.
    """
    if isinstance(cond, Mapping):
        parts = (named_arrays(part, f"{name}_{key}" if name else key) for key, part in cond.items())
        return {key: leaf for part in parts for key, leaf in part.items()}
    return {} if cond is None else {name: cond}


def abstract_cond(
    conditions: CondSpec | int, num: int, sharding: jax.sharding.Sharding | None = None
) -> Cond:
    """Return the conditions of `num` examples as `jax.ShapeDtypeStruct`s, or None.

    Args:
        conditions: Description of the condition.
        num: Number of examples.
        sharding: Sharding of the arrays.
    """

    def array(spec: Spec) -> jax.ShapeDtypeStruct:
        dtype = jnp.dtype(spec.dtype)
        return jax.ShapeDtypeStruct((num, *spec.shape), dtype, sharding=sharding)

    return _map_specs(array, conditions)


def null_cond(conditions: CondSpec | int) -> PyTree:
    """Return the null condition, which stands for no condition, with one scalar per array.

    Encoded text without a condition is zeros; for other arrays see `Spec.null`.
    """
    if isinstance(conditions, TextShape):
        return Text(0.0, 0.0)
    return _map_specs(lambda spec: spec.null, conditions)


def is_given(x: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
    """Return whether each element of a float condition is given, that is, not `NULL_NUMBER`."""
    return x > 0.5 * NULL_NUMBER


def _map_specs(fn: Callable[[Spec], Any], conditions: CondSpec | int) -> PyTree:
    """Apply `fn` to the spec of each array of a condition."""
    conditions = as_cond_spec(conditions)
    if isinstance(conditions, Mapping):
        return {name: _map_specs(fn, spec) for name, spec in conditions.items()}
    if isinstance(conditions, TextShape):
        tokens = Spec((conditions.num_tokens, conditions.width))
        return Text(fn(tokens), fn(Spec((conditions.pooled_width,))))
    return None if conditions is None else fn(conditions)


def cond_spec_json(conditions: CondSpec) -> Any:
    """Convert the description of a condition to JSON values, which `read_cond_spec` reads."""
    if conditions is None:
        return None
    if isinstance(conditions, Mapping):
        items = {name: cond_spec_json(spec) for name, spec in conditions.items()}
        return {"type": "dict", "items": items}
    return {"type": type(conditions).__name__, **dataclasses.asdict(conditions)}


def read_cond_spec(value: Any, name: str) -> CondSpec:
    """Read the JSON values that `cond_spec_json` wrote.

    Raises:
        ValueError: If the values do not describe a condition; the message starts with `name`.
    """
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    require(kind in ("Spec", "TextShape", "dict"), name, "describe a condition", value)
    fields = {key: item for key, item in value.items() if key != "type"}
    if kind == "dict":
        items = check_json(fields, _Items, name).items
        return as_cond_spec(
            {key: read_cond_spec(item, f"{name}.{key}") for key, item in items.items()}
        )
    return check_json(fields, Spec if kind == "Spec" else TextShape, name)


@dataclass(frozen=True)
class _Items:
    """The members of a dict of conditions, as JSON values."""

    items: dict[str, Any]
