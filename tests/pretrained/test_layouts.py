"""Tests of tensor layouts: reads and writes of slices, and coverage of released files."""

import itertools
from collections import Counter

import jax
import numpy as np
import pytest

from fmjax._trees import flatten_dict
from fmjax.pretrained.components import make_component
from fmjax.pretrained.files import TensorFiles, find_files
from fmjax.pretrained.layouts import all_tensors, concatenated, stacked, tensor
from tests.golden_models import GOLDEN, PIPELINES, TRANSFORMERS, config_json

COMPONENTS = [
    *TRANSFORMERS,
    *(
        f"{folder}/{name}"
        for folder in PIPELINES
        for name in ("transformer", "vae", "text_encoder", "text_encoder_2")
    ),
    "sd3-pipeline-tiny/text_encoder_3",
]
A = np.arange(48.0).reshape(6, 8)
B = -np.arange(60.0).reshape(5, 3, 2, 2)
TENSORS = {"a": A, "b": B}

LAYOUTS = {
    "unchanged": (tensor("a", 6, 8), A),
    "transposed": (tensor("a", 6, 8).T, A.T),
    "strided": (tensor("a", 6, 8)[1::2, 3:], A[1::2, 3:]),
    "strided twice": (tensor("a", 6, 8)[:, ::2][:, 1::2], A[:, ::2][:, 1::2]),
    "interleaved": (
        concatenated([tensor("a", 6, 8).T[:, i::2] for i in range(2)], axis=1),
        np.concatenate([A.T[:, ::2], A.T[:, 1::2]], axis=1),
    ),
    "pixels": (
        concatenated([tensor("b", 5, 3, 2, 2)[:, :, r, c].T for r in range(2) for c in range(2)]),
        np.concatenate([B[:, :, r, c].T for r in range(2) for c in range(2)]),
    ),
    "convolution": (tensor("b", 5, 3, 2, 2).transposed(2, 3, 1, 0), B.transpose(2, 3, 1, 0)),
    "layers": (
        stacked([{"x": tensor("a", 6, 8)[:3].T}, {"x": tensor("a", 6, 8)[3:].T}])["x"],
        np.stack([A[:3].T, A[3:].T]),
    ),
}


def read(name, index):
    return TENSORS[name][index]


@pytest.mark.parametrize("name", LAYOUTS)
def test_reading_a_slice_equals_slicing_the_full_array(name):
    layout, expected = LAYOUTS[name]
    assert layout.shape == expected.shape
    slices = [[slice(None), slice(0, 1), slice(n // 2, n), slice(1, n)] for n in layout.shape]
    for index in itertools.product(*slices):
        np.testing.assert_array_equal(layout.read(read, index, np.float64), expected[index])


@pytest.mark.parametrize("name", LAYOUTS)
def test_write_restores_the_tensors_that_were_read(name):
    layout, expected = LAYOUTS[name]
    out = {
        tensor_name: np.full_like(TENSORS[tensor_name], np.nan) for tensor_name in layout.tensors
    }
    for rows in (slice(0, 1), slice(1, layout.shape[0])):
        index = (rows, *(slice(0, n) for n in layout.shape[1:]))
        layout.write(expected[rows], index, out)
    for tensor_name, array in out.items():
        written = ~np.isnan(array)
        assert written.sum() == expected.size
        np.testing.assert_array_equal(array[written], TENSORS[tensor_name][written])


@pytest.mark.parametrize("folder", COMPONENTS)
def test_parameters_use_every_number_of_the_files_once(folder):
    with TensorFiles(find_files(GOLDEN / folder)) as files:
        component = make_component(config_json(folder), tuple(files.shapes))
        assert all_tensors(component.layouts) == files.shapes
    times_used = {name: np.zeros(shape, int) for name, shape in files.shapes.items()}
    for _, layout in flatten_dict(component.layouts).items():
        for block in layout.blocks:
            times_used[block.name][block.source_slice] += 1
    assert {name: Counter(used.ravel().tolist()) for name, used in times_used.items()} == {
        name: {1: used.size} for name, used in times_used.items()
    }
    params = jax.eval_shape(component.init, jax.random.key(0))
    shapes = {name: layout.shape for name, layout in flatten_dict(component.layouts).items()}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert shapes == {
        jax.tree_util.keystr(key_path, simple=True, separator="."): leaf.shape
        for key_path, leaf in leaves
    }
