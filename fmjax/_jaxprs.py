"""Iterate over the equations of jaxprs, compare jaxprs, and hoist their constants."""

from collections.abc import Hashable, Iterator, Sequence

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import PyTree

# Parameters of a function with a custom derivative that only its derivatives use.
_DERIVATIVE_RULES = {
    "custom_jvp_call": {"jvp_jaxpr_fun"},
    "custom_vjp_call": {"fwd_jaxpr_thunk", "bwd", "out_trees"},
}


def inner_jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Yield the jaxprs nested in an equation: loop bodies, branches and called functions."""
    for value in equation.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield inner


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Yield all equations of a jaxpr, including those of nested jaxprs."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation):
            yield from equations(inner)


def hoist_constants(closed: ClosedJaxpr) -> ClosedJaxpr:
    """Inline calls of jitted functions that close over arrays, so that all arrays are constants.

    A jitted function keeps the arrays that it closes over in its own jaxpr. Those of jitted
    functions inside loops or branches, or with shardings of their arguments, stay where they are.
    """
    if not any(_closes_over_arrays(equation) for equation in closed.jaxpr.eqns):
        return closed
    return jax.make_jaxpr(lambda *args: _eval_inlined(closed, args))(*closed.in_avals)


def _closes_over_arrays(equation: JaxprEqn) -> bool:
    if equation.primitive.name != "jit" or not isinstance(equation.params["jaxpr"], ClosedJaxpr):
        return False
    inner, shardings = equation.params["jaxpr"], equation.params["in_shardings"]
    is_plain = not any(isinstance(sharding, jax.sharding.Sharding) for sharding in shardings)
    nested = any(_closes_over_arrays(equation) for equation in inner.eqns)
    return is_plain and (bool(inner.consts) or nested)


def _eval_inlined(closed: ClosedJaxpr, args: Sequence[PyTree]) -> list[PyTree]:
    """Evaluate a jaxpr like `eval_jaxpr`, and the jitted functions that it calls likewise."""
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Var | Literal) -> PyTree:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        if _closes_over_arrays(equation):
            outputs = _eval_inlined(equation.params["jaxpr"], inputs)
        else:
            params = equation.primitive.get_bind_params(equation.params)
            with equation.ctx.manager:
                outputs = equation.primitive.bind(*inputs, **params)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


class Identity:
    """Compares by identity, and keeps the object so that its identity is not used again."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and other.value is self.value


def jaxpr_key(jaxpr: Jaxpr, *, differentiated: bool) -> Hashable:
    """Return a key that is equal for jaxprs that compute the same from the same constants.

    The values of the constants are not part of the key, except those of jaxprs nested in it. Names
    of variables and places in the source are not part of it either. Functions in the jaxpr, such
    as those of callbacks, are compared by `==`, which for most is their identity.

    Args:
        jaxpr: The jaxpr.
        differentiated: Whether derivatives of the jaxpr are computed. Otherwise custom derivatives
            are not compared.
    """
    numbers: dict[Var, int] = {}

    def number(variable: Var) -> Hashable:
        return numbers.setdefault(variable, len(numbers)), variable.aval

    def atom_key(atom: Var | Literal) -> Hashable:
        if isinstance(atom, Literal):
            return _param_key(atom.val, differentiated), atom.aval
        return number(atom)

    def equation_key(equation: JaxprEqn) -> Hashable:
        name = equation.primitive.name
        ignored = set() if differentiated else _DERIVATIVE_RULES.get(name, set())
        params = {key: value for key, value in equation.params.items() if key not in ignored}
        return (
            equation.primitive,
            tuple(map(atom_key, equation.invars)),
            _param_key(params, differentiated),
            equation.ctx,
            tuple(map(number, equation.outvars)),
        )

    inputs = tuple(map(number, [*jaxpr.constvars, *jaxpr.invars]))
    body = tuple(map(equation_key, jaxpr.eqns))
    return len(jaxpr.constvars), inputs, body, tuple(map(atom_key, jaxpr.outvars))


def _param_key(value: object, differentiated: bool) -> Hashable:
    """Return a key of a parameter of an equation, a literal, or a constant of a nested jaxpr."""
    if isinstance(value, ClosedJaxpr):
        constants = tuple(_param_key(constant, differentiated) for constant in value.consts)
        return constants, jaxpr_key(value.jaxpr, differentiated=differentiated)
    if isinstance(value, Jaxpr):
        return jaxpr_key(value, differentiated=differentiated)
    if isinstance(value, (tuple, list)):
        return type(value), tuple(_param_key(item, differentiated) for item in value)
    if isinstance(value, dict):
        return tuple((key, _param_key(item, differentiated)) for key, item in value.items())
    if isinstance(value, jax.Array):
        return Identity(value)
    if isinstance(value, (float, complex)):
        return type(value), repr(value)  # 0.0 == -0.0, and nan != nan.
    if isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "__array__"):
        array = np.asarray(value)
        return type(value), array.dtype, array.shape, array.tobytes()
    try:
        hash(value)
    except TypeError:
        return Identity(value)
    return type(value), value
