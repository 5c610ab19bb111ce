"""Conditions given as arrays: from a file, from Python, or those of the data of a run."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from fmjax._arrays import Cond
from fmjax._checks import require
from fmjax._files import read_npz, require_exists
from fmjax._inputs import describe, is_array
from fmjax._progress import Progress
from fmjax._specs import CondSpec, has_arrays, named_arrays
from fmjax.data import Dataset, NoSuchSplit
from fmjax.data.dataset import as_cond_array, require_cond_fits, require_finite
from fmjax.runs.folder import Run

_COND = "cond"  # Name of a condition that is a single array.


def read_condition_file(file: Path, cond_spec: CondSpec) -> Cond:
    """Read conditions from an .npz file with one array `[num, *shape]` per array of a condition.

    Args:
        file: The file. A condition that is a single array is called `cond`; the arrays of a dict
            have its keys.
        cond_spec: Description of the condition of the model.

    Raises:
        ValueError: If the file is not a valid .npz file, or names, shapes, types, numbers of rows
            or values do not fit the model.
    """
    rule = "be left out for a model that is not conditioned on arrays"
    require(has_arrays(cond_spec), "conditions", rule, file)
    require_exists("conditions", file)
    return _checked(read_npz(file), cond_spec, f"file {file}")


def checked_conditions(name: str, cond: PyTree, cond_spec: CondSpec) -> Cond:
    """Convert conditions from Python to float32 and int32 arrays, in the units of the data.

    Args:
        name: Name of the argument, for error messages.
        cond: An array `[num, *shape]`, or a dict of them with the structure of the condition.
        cond_spec: Description of the condition of the model.

    Raises:
        ValueError: As for `read_condition_file`.
    """
    is_dict, wants_dict = isinstance(cond, Mapping), isinstance(cond_spec, Mapping)
    rule = f"be {'a dict of arrays' if wants_dict else 'an array'} for this model"
    require(is_dict == wants_dict, name, rule, describe(cond))
    return _checked(_by_name(cond), cond_spec, name)


def _by_name(tree: PyTree) -> dict[str, PyTree]:
    """Return arrays or specs by name: the keys of a dict, or `cond` for a single one."""
    return named_arrays(tree, "" if isinstance(tree, Mapping) else _COND)


def _checked(given: Mapping[str, PyTree], cond_spec: CondSpec, name: str) -> Cond:
    """Check arrays that are given by name and return them with the structure of the condition."""

    def name_of(key: str) -> str:
        return f"{name}: {key}" if key else name

    for key, value in given.items():
        is_valid = is_array(value) and value.ndim >= 1 and 0 not in value.shape
        require(is_valid, name_of(key), "be an array with one row per condition", describe(value))
    arrays = {key: np.asarray(value) for key, value in given.items()}
    require_cond_fits(arrays, _by_name(cond_spec), name_of, "")
    lengths = {key: len(array) for key, array in arrays.items()}
    got = ", ".join(f"{key} with {length}" for key, length in lengths.items())
    require(len(set(lengths.values())) == 1, name, "hold arrays with equally many rows", got)
    for key, array in arrays.items():
        arrays[key] = as_cond_array(array)
        require_finite(name_of(key), arrays[key])

    def nest(spec: CondSpec, key: str) -> PyTree:
        if isinstance(spec, Mapping):
            return {part: nest(spec[part], f"{key}_{part}" if key else part) for part in spec}
        return arrays[key]

    return nest(cond_spec, "" if isinstance(cond_spec, Mapping) else _COND)


def num_conditions(cond: Cond) -> int:
    """Return the number of rows of conditions."""
    return len(jax.tree.leaves(cond)[0])


def data_condition_arrays(run: Run, num: int, progress: Progress) -> Cond:
    """Return the conditions of the first `num` examples of the test split, repeated if needed.

    The training split is used if the data of the run have no test split.

    Raises:
        ValueError: If the data are missing, or their conditions are not those of the model.
    """
    data = run.config.data
    try:
        dataset = data.load("test", progress=progress)
    except NoSuchSplit:
        dataset = data.load("train", progress=progress)
    require_same_conditions(run, dataset)
    return dataset.conds(np.arange(num) % len(dataset))


def require_same_conditions(run: Run, dataset: Dataset) -> None:
    """Raise unless the data have the conditions of the model."""
    rule = "have the conditions of the model of the run (or give other conditions)"
    require(dataset.conditions == run.conditions, "data", rule, dataset.conditions)


def digest_of(cond: Cond) -> str:
    """Return eight characters that identify conditions, for file names."""
    digest = hashlib.sha256()
    for key, array in _by_name(cond).items():
        digest.update(f"{key} {array.dtype} {array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:8]
