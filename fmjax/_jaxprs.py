"""Iterate over the equations of jaxprs, including nested ones."""

from collections.abc import Iterator

from jax.extend.core import Jaxpr, JaxprEqn


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
