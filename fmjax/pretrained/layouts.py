"""Layouts of released weights: which slice of which tensor holds each part of a parameter.

Tensors in released files differ from the parameters of fmjax in name and layout: matrices are
transposed, queries and keys are separate, and layers are not stacked. A `TensorLayout` maps each
part of one parameter to a part of a tensor, in both directions: any slice of a parameter can be
read from the files, and parameters can be written back into tensors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from fmjax._trees import flatten_dict

Index = tuple[slice, ...]


class _Axis(NamedTuple):
    """One axis of a block.

    Attributes:
        tensor_axis: The axis of the tensor that it maps to; None if the tensor has no such axis.
        start: First index along the tensor's axis.
        step: Difference of consecutive indices along the tensor's axis.
        size: Number of indices.
        offset: First index along the parameter's axis.
    """

    tensor_axis: int | None
    start: int
    step: int
    size: int
    offset: int

    def intersect(self, low: int, high: int) -> "_Axis | None":
        """Return the part at the parameter's indices [low, high), or None if it is empty."""
        first, last = max(low, self.offset), min(high, self.offset + self.size)
        if first >= last:
            return None
        start = self.start + (first - self.offset) * self.step
        return _Axis(self.tensor_axis, start, self.step, last - first, first)

    @property
    def source_slice(self) -> slice:
        """Slice along the tensor's axis."""
        return slice(self.start, self.start + (self.size - 1) * self.step + 1, self.step)

    @property
    def target_slice(self) -> slice:
        """Slice along the parameter's axis."""
        return slice(self.offset, self.offset + self.size)


class _Block(NamedTuple):
    """A rectangular part of a parameter that is a rectangular part of one tensor.

    Attributes:
        name: Name of the tensor.
        axes: The axes of the parameter, in order.
        fixed: Axes of the tensor that are indexed by an integer, as `(axis, index)`.
    """

    name: str
    axes: tuple[_Axis, ...]
    fixed: tuple[tuple[int, int], ...] = ()

    def intersect(self, index: Index) -> "_Block | None":
        """Return the part at `index` of the parameter, or None if it is empty."""
        axes = [axis.intersect(s.start, s.stop) for axis, s in zip(self.axes, index, strict=True)]
        nonempty = tuple(axis for axis in axes if axis is not None)
        return _Block(self.name, nonempty, self.fixed) if len(nonempty) == len(axes) else None

    @property
    def source_slice(self) -> Index:
        """Slices of the tensor, one per axis of the tensor."""
        slices = {a.tensor_axis: a.source_slice for a in self.axes if a.tensor_axis is not None}
        slices |= {axis: slice(start, start + 1) for axis, start in self.fixed}
        return tuple(slices[axis] for axis in range(len(slices)))

    @property
    def target_slice(self) -> Index:
        """Slices of the parameter, one per axis of the parameter."""
        return tuple(axis.target_slice for axis in self.axes)

    def to_param(self, part: np.ndarray) -> np.ndarray:
        """Rearrange a part of the tensor into the layout of the parameter."""
        part = part.transpose(self._tensor_axes())
        return part.reshape([axis.size for axis in self.axes])

    def from_param(self, part: np.ndarray) -> np.ndarray:
        """Rearrange a part of the parameter into the layout of the tensor."""
        sizes = [axis.size for axis in self.axes if axis.tensor_axis is not None]
        part = part.reshape(sizes + [1] * len(self.fixed))
        return part.transpose(np.argsort(self._tensor_axes()))

    def _tensor_axes(self) -> list[int]:
        """Axes of the tensor in the order of the parameter's axes, fixed ones last."""
        free = [axis.tensor_axis for axis in self.axes if axis.tensor_axis is not None]
        return free + [axis for axis, _ in self.fixed]


@dataclass(frozen=True)
class TensorLayout:
    """Mapping from one parameter to parts of tensors; start from `tensor` and transform it.

    Attributes:
        shape: Shape of the parameter.
        tensors: Shapes of all tensors that hold a part of the parameter, by name.
        blocks: The parts of the parameter, each with its part of a tensor.
    """

    shape: tuple[int, ...]
    tensors: Mapping[str, tuple[int, ...]]
    blocks: tuple[_Block, ...]

    @property
    def T(self) -> "TensorLayout":
        """The layout with the axes of the parameter in reverse order."""
        return self.transposed(*reversed(range(len(self.shape))))

    def transposed(self, *axes: int) -> "TensorLayout":
        """Permute the axes of the parameter, like `numpy.transpose`."""
        blocks = (b._replace(axes=tuple(b.axes[axis] for axis in axes)) for b in self.blocks)
        return TensorLayout(tuple(self.shape[axis] for axis in axes), self.tensors, tuple(blocks))

    def __getitem__(self, index: int | slice | tuple[int | slice, ...]) -> "TensorLayout":
        """Select a part by integers and slices, like a NumPy array; for layouts of one block."""
        index = index if isinstance(index, tuple) else (index,)
        assert len(self.blocks) == 1, "only layouts of one block can be indexed"
        (block,) = self.blocks
        axes, fixed = [], list(block.fixed)
        indices = index + (slice(None),) * len(block.axes)
        for axis, selected in zip(block.axes, indices, strict=False):
            if isinstance(selected, int):
                assert axis.tensor_axis is not None
                fixed.append((axis.tensor_axis, axis.start + selected * axis.step))
                continue
            start, stop, step = selected.indices(axis.size)
            size, start = len(range(start, stop, step)), axis.start + start * axis.step
            axes.append(_Axis(axis.tensor_axis, start, axis.step * step, size, 0))
        shape = tuple(axis.size for axis in axes)
        return TensorLayout(shape, self.tensors, (_Block(block.name, tuple(axes), tuple(fixed)),))

    def read(
        self, read_part: Callable[[str, Index], np.ndarray], index: Index, dtype: DTypeLike
    ) -> np.ndarray:
        """Read the part of the parameter at `index`.

        Args:
            read_part: `read_part(name, index)` returns a part of a tensor.
            index: Slices without step, one per axis. Their ends may be None, as in the indices that
                JAX passes to callbacks.
            dtype: Dtype of the result.
        """
        dtype = np.dtype(dtype)
        index = tuple(slice(*s.indices(n)) for s, n in zip(index, self.shape, strict=True))
        out = np.empty([s.stop - s.start for s in index], dtype)
        for block in self.blocks:
            part = block.intersect(index)
            if part is not None:
                array = read_part(part.name, part.source_slice).astype(dtype, copy=False)
                _copy(out[_relative_to(index, part.target_slice)], part.to_param(array))
        return out

    def write(self, array: np.ndarray, index: Index, out: Mapping[str, np.ndarray]) -> None:
        """Write a slice of the parameter into the tensors of a file of released weights.

        Args:
            array: The part of the parameter at `index`.
            index: Slices with start and stop, one per axis.
            out: Tensors by name, modified in place. Tensors that are not in it are skipped.
        """
        for block in self.blocks:
            part = block.intersect(index) if block.name in out else None
            if part is not None:
                tensor = out[part.name]
                values = part.from_param(array[_relative_to(index, part.target_slice)])
                _copy(tensor[part.source_slice], values.astype(tensor.dtype, copy=False))


Layouts: TypeAlias = PyTree[TensorLayout]
"""Layouts of all parameters of a network, in nested dicts structured like the parameters."""


def _relative_to(index: Index, target_slice: Index) -> Index:
    """Convert slices of a parameter to slices of the part of it at `index`."""
    pairs = zip(target_slice, index, strict=True)
    return tuple(slice(p.start - s.start, p.stop - s.start) for p, s in pairs)


_STRIP = 64  # Columns per copy, few enough for their rows to stay in the cache.


def _copy(out: np.ndarray, array: np.ndarray) -> None:
    """Assign `out[...] = array`, fast for different memory orders; the dtypes must be equal.

    The bytes are copied as integers, because NumPy holds the GIL while it copies bfloat16.
    """
    integer = np.dtype(f"u{array.dtype.itemsize}")
    out, array = out.view(integer), array.view(integer)
    if out.ndim < 2:
        out[...] = array
        return
    for first in range(0, out.shape[-1], _STRIP):
        out[..., first : first + _STRIP] = array[..., first : first + _STRIP]


def tensor(name: str, *shape: int) -> TensorLayout:
    """Return the layout of a parameter that equals one tensor."""
    axes = tuple(_Axis(axis, 0, 1, size, 0) for axis, size in enumerate(shape))
    return TensorLayout(shape, {name: shape}, (_Block(name, axes),))


def concatenated(layouts: Sequence[TensorLayout], axis: int = 0) -> TensorLayout:
    """Concatenate layouts along an axis, like `numpy.concatenate`."""
    first, tensors, blocks, offset = layouts[0], {}, [], 0
    axis %= len(first.shape)
    for layout in layouts:
        same = layout.shape[:axis] == first.shape[:axis]
        same = same and layout.shape[axis + 1 :] == first.shape[axis + 1 :]
        assert same, f"shapes must be equal outside axis {axis}, got {first.shape}, {layout.shape}"
        tensors |= layout.tensors
        for block in layout.blocks:
            moved = block.axes[axis]._replace(offset=block.axes[axis].offset + offset)
            axes = (*block.axes[:axis], moved, *block.axes[axis + 1 :])
            blocks.append(block._replace(axes=axes))
        offset += layout.shape[axis]
    shape = (*first.shape[:axis], offset, *first.shape[axis + 1 :])
    return TensorLayout(shape, tensors, tuple(blocks))


def stacked(trees: Sequence[Layouts]) -> Layouts:
    """Stack nested dicts of equal structure along a new leading axis (layers of a scan)."""
    first = trees[0]
    if isinstance(first, Mapping):
        return {name: stacked([tree[name] for tree in trees]) for name in first}
    expanded = []
    for layout in trees:
        blocks = (b._replace(axes=(_Axis(None, 0, 1, 1, 0), *b.axes)) for b in layout.blocks)
        expanded.append(TensorLayout((1, *layout.shape), layout.tensors, tuple(blocks)))
    return concatenated(expanded)


def all_tensors(tree: Layouts) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors that the files of a model must hold, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for _, layout in flatten_dict(tree).items():
        for name, shape in layout.tensors.items():
            assert shapes.setdefault(name, shape) == shape, f"{name} has two shapes"
    return shapes


def linear(
    name: str, in_features: int, out_features: int, *, bias: bool = True
) -> dict[str, TensorLayout]:
    """Layouts of a linear layer: tensor `[out, in]`, kernel `[in, out]`."""
    layer = {"kernel": tensor(f"{name}.weight", out_features, in_features).T}
    return layer | ({"bias": tensor(f"{name}.bias", out_features)} if bias else {})


def convolution(
    name: str, in_channels: int, out_channels: int, size: int
) -> dict[str, TensorLayout]:
    """Layouts of a convolution: tensor `[out, in, size, size]`, kernel `[size, size, in, out]`."""
    weight = tensor(f"{name}.weight", out_channels, in_channels, size, size)
    bias = tensor(f"{name}.bias", out_channels)
    return {"kernel": weight.transposed(2, 3, 1, 0), "bias": bias}
