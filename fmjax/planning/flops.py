"""Count the floating-point operations of a function and of a training step."""

import math
from collections.abc import Callable

import jax
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import PyTree

from fmjax._arrays import Batch, Params
from fmjax._jaxprs import inner_jaxprs
from fmjax.losses.objective import Objective


def flops_per_example(
    objective: Objective, params: Params, batch: Batch, frozen: Params | None = None
) -> float:
    """Return the FLOPs of one example in a training step: the loss, plus twice that for gradients.

    Targets computed with averaged weights have no gradient and count once. Frozen weights have no
    weight gradient, only the gradient of their inputs, and count twice instead of three times.
    Recomputation by rematerialization is not counted.

    Args:
        objective: Objective of the training step.
        params: Trainable parameters, arrays or `jax.ShapeDtypeStruct`s.
        batch: Batch of any size, arrays or `jax.ShapeDtypeStruct`s.
        frozen: Parameters that are not trained, nested dicts, or None.
    """

    def loss(parts: PyTree, examples: PyTree) -> PyTree:
        return objective.with_frozen(parts[1]).loss(parts[0], examples)

    def with_targets(parts: PyTree, examples: PyTree) -> PyTree:
        return objective.with_frozen(parts[1]).with_targets(parts[0], examples)

    parts, num_examples = (params, frozen), jax.tree.leaves(batch)[0].shape[0]
    examples = jax.eval_shape(objective.make_examples, jax.random.key(0), batch)
    examples_with_targets = jax.eval_shape(with_targets, parts, examples)
    num_trained, num_frozen = (sum(leaf.size for leaf in jax.tree.leaves(part)) for part in parts)
    factor = 2.0 + num_trained / (num_trained + num_frozen)
    flops = factor * count_flops(loss, parts, examples_with_targets)
    return (flops + count_flops(with_targets, parts, examples)) / num_examples


def count_flops(fn: Callable[..., PyTree], *args: PyTree) -> float:
    """Count the FLOPs of the matrix products and convolutions in `fn(*args)`.

    A multiplication and an addition count as two operations. Other operations are not counted, as
    is usual. A scan counts once per iteration, a conditional as its most expensive branch, and the
    body of a while loop once.

    Args:
        fn: The function; it is traced, not run.
        args: Arguments of `fn`, arrays or `jax.ShapeDtypeStruct`s.
    """
    return _flops(jax.make_jaxpr(fn)(*args).jaxpr)


def counts_all(fn: Callable[..., PyTree], *args: PyTree) -> bool:
    """Return whether `count_flops` is exact for `fn(*args)`: while loops contain no counted work.

    Args:
        fn: The function; it is traced, not run.
        args: Arguments of `fn`, arrays or `jax.ShapeDtypeStruct`s.
    """
    return _counts_all(jax.make_jaxpr(fn)(*args).jaxpr)


def _counts_all(jaxpr: Jaxpr) -> bool:
    return all(
        _flops(inner) == 0.0 if equation.primitive.name == "while" else _counts_all(inner)
        for equation in jaxpr.eqns
        for inner in inner_jaxprs(equation)
    )


def _flops(jaxpr: Jaxpr) -> float:
    return sum(map(_flops_of_equation, jaxpr.eqns), 0.0)


def _flops_of_equation(equation: JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        ((contracted, _), _), left = params["dimension_numbers"], _aval(equation.invars[0]).shape
        num_outputs = _aval(equation.outvars[0]).size
        return 2.0 * num_outputs * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = _aval(equation.invars[1])
        out_channels = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * _aval(equation.outvars[0]).size * kernel.size / out_channels
    if name == "pallas_call":  # The jaxpr of a kernel covers one block only.
        estimate = params.get("cost_estimate")
        return 0.0 if estimate is None else float(estimate.flops)
    inner_flops = [_flops(inner) for inner in inner_jaxprs(equation)]
    if name == "cond":
        return max(inner_flops)
    return sum(inner_flops, 0.0) * (params["length"] if name == "scan" else 1)


def _aval(variable: Var | Literal) -> ShapedArray:
    """Return the shape and dtype of an array in a jaxpr."""
    assert isinstance(variable.aval, ShapedArray)
    return variable.aval
