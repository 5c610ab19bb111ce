"""Reuse compiled programs between calls outside of `jax.jit`.

`jax.jit` reuses a program for the same function object, but a velocity field is often a new closure
over new parameters. Here the user's functions are traced in every call, which is fast, and the
program is found by their jaxprs. The arrays that they close over are arguments of the program. The
program contains the jaxprs in the place of the functions and does not depend on the identity of a
function: attributes and global variables that it reads may change between calls.
"""

import dataclasses
import enum
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer, eval_jaxpr
from jax.extend.core import Jaxpr
from jax.sharding import AxisType
from jaxtyping import PyTree

from fmjax._jaxprs import Identity, hoist_constants, jaxpr_key
from fmjax.solvers.steps import Samples

# Programs that are kept. The one that was not used for the longest time is dropped first.
MAX_PROGRAMS = 32

Program = TypeVar("Program")

# The constants of each call of each function.
_Constants: TypeAlias = list[list[list[PyTree]]]


class UserFunction(NamedTuple):
    """A function of the user and the shapes with which a solve calls it.

    Attributes:
        fn: The function. It returns a pytree of arrays.
        calls: Arguments of each kind of call, with `jax.ShapeDtypeStruct` in the place of arrays.
        differentiated: Whether the solver computes derivatives of the function.
    """

    fn: Callable[..., PyTree]
    calls: Sequence[tuple[PyTree, ...]]
    differentiated: bool = False


def batch_of(size: int | None, args: PyTree) -> PyTree:
    """Return the shapes and dtypes of arguments for a batch of `size`, None for their own size."""

    def struct_of(a: PyTree) -> jax.ShapeDtypeStruct:
        aval = a if isinstance(a, jax.ShapeDtypeStruct) else jax.typeof(a)
        shape = aval.shape if size is None or not aval.shape else (size, *aval.shape[1:])
        return jax.ShapeDtypeStruct(shape, aval.dtype, weak_type=aval.weak_type)

    return jax.tree.map(struct_of, args)


def times_of(x: jax.Array) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of one time for each sample."""
    return jax.ShapeDtypeStruct(x.shape[:1], x.dtype)


def call_directly(
    solve: Callable[..., Samples],
    functions: Sequence[UserFunction],
    arrays: Sequence[PyTree],
    settings: Sequence[object],
) -> Samples:
    """Compute `solve(*functions, *arrays, *settings)` with the functions themselves."""
    return solve(*(function.fn for function in functions), *arrays, *settings)


def reuse_program(
    solve: Callable[..., Samples],
    functions: Sequence[UserFunction],
    arrays: Sequence[PyTree],
    settings: Sequence[object],
) -> Samples:
    """Compute `solve(*functions, *arrays, *settings)` with a compiled program of an earlier call.

    The program is compiled if there is none. Where it cannot be shared, `solve` is called directly:
    inside of `jit`, `grad` or `vmap`; if a function uses the values of its arguments in Python; if
    settings can change between calls without being noticed; with `jax_debug_nans`, which needs
    separate operations.

    Args:
        solve: A function of a module, which uses its arguments only.
        functions: Functions that the user passed. They are replaced by their jaxprs.
        arrays: Pytrees of arrays and numbers, arguments of the program.
        settings: Part of the program. Frozen dataclasses, numbers and strings can be compared.
    """
    found = _find_or_make(solve, functions, arrays, settings) if _may_compile(arrays) else None
    if found is None:
        return call_directly(solve, functions, arrays, settings)
    key, program, constants = found
    samples = program(constants, arrays)
    if program.release_functions():
        _PROGRAMS.put(key, program)
    return samples


def _find_or_make(
    solve: Callable[..., Samples],
    functions: Sequence[UserFunction],
    arrays: Sequence[PyTree],
    settings: Sequence[object],
) -> tuple[Hashable, "_Program", _Constants] | None:
    """Return a program with its key and the constants of the functions, None if not possible."""
    try:
        key_of_settings = settings_key(settings)
        traced = [_trace(function) for function in functions]
    except (MutableError, *_VALUE_ERRORS):
        return None
    constants = [consts for _, consts in traced]
    if any(isinstance(a, Tracer) for a in jax.tree.leaves(constants)) or _is_tracing():
        return None
    keys = tuple(fn.key for fn, _ in traced)
    mesh = jax.sharding.get_abstract_mesh()
    key = (solve, key_of_settings, keys, _array_key(arrays), mesh)
    program = _PROGRAMS.get(key) or _Program(solve, [fn for fn, _ in traced], settings)
    return key, program, constants


# Options with which JAX is to run separate operations.
_SEPARATE_OPERATIONS = ("jax_debug_nans", "jax_debug_infs", "jax_disable_jit")
# Errors of a function that uses the value of an argument in Python.
_VALUE_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


class MutableError(Exception):
    """A setting could change between two calls without a change of its key."""


class _TracedFunction:
    """A function as the jaxprs of its calls, without the values of its constants.

    Attributes:
        key: Equal for functions that compute the same from the same constants.
        fn: The function itself while the program is compiled, for calls of other shapes; then None.
        called_directly: Whether `fn` was called, so that the program contains its constants.
    """

    def __init__(self, function: UserFunction) -> None:
        self.key: Hashable = ()
        self.fn: Callable[..., PyTree] | None = function.fn
        self.called_directly = False
        self._jaxprs: dict[Hashable, tuple[int, Jaxpr, PyTree]] = {}

    def add(self, args: tuple[PyTree, ...], differentiated: bool) -> list[PyTree]:
        """Trace a call, and return its constants."""
        fn = self.fn
        assert fn is not None
        # JAX reuses jaxprs of the same function object, which may have changed.
        closed, result = jax.make_jaxpr(lambda *args: fn(*args), return_shape=True)(*args)
        closed = hoist_constants(closed)
        call, structure = _array_key(args), jax.tree.structure(result)
        self._jaxprs[call] = (len(self._jaxprs), closed.jaxpr, structure)
        key = jaxpr_key(closed.jaxpr, differentiated=differentiated)
        self.key = (self.key, call, key, structure)
        return list(closed.consts)

    def __call__(self, constants: Sequence[Sequence[PyTree]], *args: PyTree) -> PyTree:
        """Evaluate the jaxpr of the call."""
        found = self._jaxprs.get(_array_key(args))
        if found is None:
            assert self.fn is not None, "a program must call a function as when it was compiled"
            self.called_directly = True
            return self.fn(*args)
        index, jaxpr, structure = found
        outputs = eval_jaxpr(jaxpr, constants[index], *jax.tree.leaves(args))
        return jax.tree.unflatten(structure, outputs)


def _trace(function: UserFunction) -> tuple[_TracedFunction, list[list[PyTree]]]:
    """Trace the calls of a function; return it with the constants of each call."""
    traced = _TracedFunction(function)
    calls = {_array_key(args): args for args in function.calls}
    return traced, [traced.add(args, function.differentiated) for args in calls.values()]


class _Program:
    """A solve with functions that were traced, compiled for each layout of its arguments."""

    def __init__(
        self,
        solve: Callable[..., Samples],
        functions: list[_TracedFunction],
        settings: Sequence[object],
    ) -> None:
        self._functions = functions

        def run(constants: _Constants, arrays: Sequence[PyTree]) -> Samples:
            bound = [
                jax.tree_util.Partial(fn, consts)
                for fn, consts in zip(functions, constants, strict=True)
            ]
            return solve(*bound, *arrays, *settings)

        self._run = jax.jit(run)

    def __call__(self, constants: _Constants, arrays: Sequence[PyTree]) -> Samples:
        return self._run(constants, arrays)

    def release_functions(self) -> bool:
        """Forget the functions themselves; return whether the program is independent of them."""
        for function in self._functions:
            function.fn = None
        return not any(function.called_directly for function in self._functions)


class Programs(Generic[Program]):
    """The programs used last, at most `MAX_PROGRAMS`."""

    def __init__(self) -> None:
        self._programs: OrderedDict[Hashable, Program] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._programs)

    def get(self, key: Hashable) -> Program | None:
        """Return a program, None if there is none."""
        with self._lock:
            if key in self._programs:
                self._programs.move_to_end(key)
            return self._programs.get(key)

    def put(self, key: Hashable, program: Program) -> None:
        """Keep a program, and drop the oldest one if there are too many."""
        with self._lock:
            self._programs[key] = program
            while len(self._programs) > MAX_PROGRAMS:
                self._programs.popitem(last=False)


_PROGRAMS: Programs[_Program] = Programs()


def _may_compile(arrays: Sequence[PyTree]) -> bool:
    """Whether all arrays are known, and a program may be compiled for them."""
    if any(getattr(jax.config, option) for option in _SEPARATE_OPERATIONS):
        return False
    leaves = jax.tree.leaves(arrays)
    if any(isinstance(a, Tracer) for a in leaves):
        return False
    meshes = [jax.typeof(a).sharding.mesh for a in leaves] + [jax.sharding.get_abstract_mesh()]
    return not any(kind is AxisType.Explicit for mesh in meshes for kind in mesh.axis_types)


def _is_tracing() -> bool:
    """Whether the call is inside of `jit`, although all its arrays are known."""
    return isinstance(jax.lax.full((), 0), Tracer)


def _array_key(tree: PyTree) -> Hashable:
    """Return the structure of a pytree, and the shapes and dtypes of its arrays."""
    leaves, structure = jax.tree.flatten(tree)
    avals = [a if isinstance(a, jax.ShapeDtypeStruct) else jax.typeof(a) for a in leaves]
    return structure, tuple((aval.shape, aval.dtype) for aval in avals)


def settings_key(value: object) -> Hashable:
    """Return a key of settings that stay the same as long as the object exists.

    Raises:
        MutableError: If the value could change.
    """
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(settings_key, value))
    if isinstance(value, (float, complex)):
        return type(value), repr(value)  # 0.0 == -0.0, and nan != nan.
    if value is None or isinstance(value, (bool, int, str, enum.Enum, type)):
        return type(value), value
    if isinstance(value, (np.ndarray, jax.Array, np.generic)) and not isinstance(value, Tracer):
        array = np.asarray(value)
        return type(value), array.dtype, array.shape, array.tobytes()
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and _is_frozen(value):
        names = [field.name for field in dataclasses.fields(value)]
        return type(value), tuple(settings_key(getattr(value, name)) for name in names)
    # Markers, such as Diffrax's for settings that are not given, have no attributes.
    if not callable(value) and getattr(value, "__dict__", None) == {}:
        return Identity(value)
    raise MutableError


def _is_frozen(value: object) -> bool:
    """Whether a dataclass refuses assignment, as all modules of Equinox do."""
    params = getattr(type(value), "__dataclass_params__", None)
    return isinstance(value, eqx.Module) or (params is not None and params.frozen)
