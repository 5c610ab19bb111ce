"""Reading programs: the equations that JAX traces a function to."""

from collections.abc import Iterator
from typing import Any


def inner_jaxprs(equation: Any) -> Iterator[Any]:
    """The programs that an equation holds: bodies of loops, branches, inner calls."""
    for value in equation.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield inner


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations, those of scans, conditionals and inner calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation):
            yield from equations(inner)
