"""Where in a file's tensors the numbers of a parameter stand.

Released weights have other names and layouts than the parameters here: matrices the other way
round, queries and keys apart, layers one by one. A `TensorLayout` maps each part of one parameter
to a part of a tensor. It works both ways: any slice of a parameter can be read from files, and
parameters can be written back into tensors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fmjax._trees import flatten_dict

Index = tuple[slice, ...]


class _Axis(NamedTuple):
    """One axis of a block.

    Attributes:
        of: Which axis of the tensor it runs along; None for one that the tensor does not have.
        start: First place along it.
        step: From one place to the next.
        size: How many places.
        place: Of the first of them, along this axis of the parameter.
    """

    of: int | None
    start: int
    step: int
    size: int
    place: int

    def within(self, low: int, high: int) -> "_Axis | None":
        """The part of it at the places `low` to `high` of the parameter, None if there is none."""
        first, last = max(low, self.place), min(high, self.place + self.size)
        if first >= last:
            return None
        start = self.start + (first - self.place) * self.step
        return _Axis(self.of, start, self.step, last - first, first)

    @property
    def source_slice(self) -> slice:
        """Its places along the tensor's axis."""
        return slice(self.start, self.start + (self.size - 1) * self.step + 1, self.step)

    @property
    def target_slice(self) -> slice:
        """Its places along the parameter's axis."""
        return slice(self.place, self.place + self.size)


class _Block(NamedTuple):
    """A rectangle of a parameter that is a rectangle of one tensor.

    Attributes:
        name: Of the tensor.
        axes: Of the parameter, one by one.
        fixed: Axes of the tensor at one place, `(axis, place)`.
    """

    name: str
    axes: tuple[_Axis, ...]
    fixed: tuple[tuple[int, int], ...] = ()

    def within(self, index: Index) -> "_Block | None":
        axes = [axis.within(s.start, s.stop) for axis, s in zip(self.axes, index, strict=True)]
        kept = tuple(axis for axis in axes if axis is not None)
        return _Block(self.name, kept, self.fixed) if len(kept) == len(axes) else None

    @property
    def source_slice(self) -> Index:
        """What of the tensor it is, axis by axis."""
        found = {axis.of: axis.source_slice for axis in self.axes if axis.of is not None}
        found |= {axis: slice(place, place + 1) for axis, place in self.fixed}
        return tuple(found[axis] for axis in range(len(found)))

    @property
    def target_slice(self) -> Index:
        """Where in the parameter it stands."""
        return tuple(axis.target_slice for axis in self.axes)

    def to_param(self, part: np.ndarray) -> np.ndarray:
        """What was taken of the tensor, as it stands in the parameter."""
        own = [axis.of for axis in self.axes if axis.of is not None]
        part = part.transpose(own + [axis for axis, _ in self.fixed])
        return part.reshape([axis.size for axis in self.axes])

    def from_param(self, part: np.ndarray) -> np.ndarray:
        """The inverse of `to_param`."""
        own = [axis.of for axis in self.axes if axis.of is not None]
        order = own + [axis for axis, _ in self.fixed]
        sizes = [axis.size for axis in self.axes if axis.of is not None] + [1] * len(self.fixed)
        return part.reshape(sizes).transpose(np.argsort(order))


@dataclass(frozen=True)
class TensorLayout:
    """A parameter, as parts of tensors. Make one by `tensor`, and others from it.

    Attributes:
        shape: Of the parameter.
        tensors: Shapes of all tensors that have a part in it, by name.
        blocks: Which part of it is what.
    """

    shape: tuple[int, ...]
    tensors: Mapping[str, tuple[int, ...]]
    blocks: tuple[_Block, ...]

    @property
    def T(self) -> "TensorLayout":
        """Its axes the other way round."""
        return self.transposed(*reversed(range(len(self.shape))))

    def transposed(self, *axes: int) -> "TensorLayout":
        """With its axes in this order, as `numpy.transpose`."""
        blocks = (b._replace(axes=tuple(b.axes[axis] for axis in axes)) for b in self.blocks)
        return TensorLayout(tuple(self.shape[axis] for axis in axes), self.tensors, tuple(blocks))

    def __getitem__(self, index: int | slice | tuple[int | slice, ...]) -> "TensorLayout":
        """Part of a view of one tensor: integers and slices, as of a NumPy array."""
        index = index if isinstance(index, tuple) else (index,)
        assert len(self.blocks) == 1, "only parts of one tensor"
        (block,) = self.blocks
        axes, fixed = [], list(block.fixed)
        for axis, one in zip(block.axes, index + (slice(None),) * len(block.axes), strict=False):
            if isinstance(one, int):
                assert axis.of is not None
                fixed.append((axis.of, axis.start + one * axis.step))
                continue
            start, stop, step = one.indices(axis.size)
            size = len(range(start, stop, step))
            axes.append(_Axis(axis.of, axis.start + start * axis.step, axis.step * step, size, 0))
        shape = tuple(axis.size for axis in axes)
        return TensorLayout(shape, self.tensors, (_Block(block.name, tuple(axes), tuple(fixed)),))

    def read(
        self, read_part: Callable[[str, Index], np.ndarray], index: Index, dtype: Any
    ) -> np.ndarray:
        """The part of the parameter at `index`.

        Args:
            read_part: `(name, index) -> array` gives part of a tensor.
            index: Slices without steps; None stands for an end, as in what JAX asks for.
            dtype: Of the result.
        """
        index = tuple(slice(*s.indices(n)) for s, n in zip(index, self.shape, strict=True))
        out = np.empty([s.stop - s.start for s in index], dtype)
        for block in self.blocks:
            part = block.within(index)
            if part is not None:
                found = read_part(part.name, part.source_slice).astype(dtype, copy=False)
                _copy(out[_within(part.target_slice, index)], part.to_param(found))
        return out

    def write(self, array: np.ndarray, index: Index, out: Mapping[str, np.ndarray]) -> None:
        """Put the part of the parameter at `index` into those tensors that `out` has."""
        for block in self.blocks:
            part = block.within(index) if block.name in out else None
            if part is not None:
                tensor = out[part.name]
                found = part.from_param(array[_within(part.target_slice, index)])
                _copy(tensor[part.source_slice], found.astype(tensor.dtype, copy=False))


def _within(target_slice: Index, index: Index) -> Index:
    """Places of the parameter as places of the part of it at `index`."""
    pairs = zip(target_slice, index, strict=True)
    return tuple(slice(p.start - s.start, p.stop - s.start) for p, s in pairs)


_STRIP = 64  # Columns of a copy at a time: their rows then stay in the cache.


def _copy(out: np.ndarray, array: np.ndarray) -> None:
    """`out[...] = array` of one type, quick where the two are laid out differently.

    Bytes are moved as integers: what NumPy knows releases Python's lock, bfloat16 does not.
    """
    plain = np.dtype(f"u{array.dtype.itemsize}")
    out, array = out.view(plain), array.view(plain)
    if out.ndim < 2:
        out[...] = array
        return
    for first in range(0, out.shape[-1], _STRIP):
        out[..., first : first + _STRIP] = array[..., first : first + _STRIP]


def tensor(name: str, *shape: int) -> TensorLayout:
    """A tensor of a file as it is."""
    axes = tuple(_Axis(axis, 0, 1, size, 0) for axis, size in enumerate(shape))
    return TensorLayout(shape, {name: shape}, (_Block(name, axes),))


def concatenated(views: Sequence[TensorLayout], axis: int = 0) -> TensorLayout:
    """One after the other along an axis, as `numpy.concatenate`."""
    first, tensors, blocks, place = views[0], {}, [], 0
    axis %= len(first.shape)
    for view in views:
        assert view.shape[:axis] == first.shape[:axis], "only the joined axis may differ"
        assert view.shape[axis + 1 :] == first.shape[axis + 1 :], "only the joined axis may differ"
        tensors |= view.tensors
        for block in view.blocks:
            moved = block.axes[axis]._replace(place=block.axes[axis].place + place)
            axes = (*block.axes[:axis], moved, *block.axes[axis + 1 :])
            blocks.append(block._replace(axes=axes))
        place += view.shape[axis]
    shape = (*first.shape[:axis], place, *first.shape[axis + 1 :])
    return TensorLayout(shape, tensors, tuple(blocks))


def stacked(trees: Sequence[Any]) -> Any:
    """Equal nested dicts of views as one, each view with a leading axis: layers of a scan."""
    first = trees[0]
    if isinstance(first, Mapping):
        return {name: stacked([tree[name] for tree in trees]) for name in first}
    raised = []
    for view in trees:
        blocks = (b._replace(axes=(_Axis(None, 0, 1, 1, 0), *b.axes)) for b in view.blocks)
        raised.append(TensorLayout((1, *view.shape), view.tensors, tuple(blocks)))
    return concatenated(raised)


def all_tensors(tree: Any) -> dict[str, tuple[int, ...]]:
    """The tensors that a model's files must hold: shapes by name."""
    found: dict[str, tuple[int, ...]] = {}
    for _, view in flatten_dict(tree).items():
        for name, shape in view.tensors.items():
            assert found.setdefault(name, shape) == shape, f"two shapes of {name}"
    return found


def linear(name: str, before: int, after: int, *, bias: bool = True) -> dict[str, TensorLayout]:
    """A linear layer: its tensor is `[after, before]`, its kernel multiplies from the right."""
    layer = {"kernel": tensor(f"{name}.weight", after, before).T}
    return layer | ({"bias": tensor(f"{name}.bias", after)} if bias else {})


def convolution(name: str, before: int, after: int, size: int) -> dict[str, TensorLayout]:
    """A convolution: its tensor is `[after, before, size, size]`, its kernel the other order."""
    kernel = tensor(f"{name}.weight", after, before, size, size).transposed(2, 3, 1, 0)
    return {"kernel": kernel, "bias": tensor(f"{name}.bias", after)}
