"""Tests of the batches that `fit` takes: iterators, iterables, their checks and positions."""

import logging
import re

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax._arrays import Batch
from fmjax.sharding import batch_sharding, make_mesh
from fmjax.training import Checkpoints
from fmjax.training.feed import Feed
from tests.training.child import run
from tests.training.test_loop import NUM_STEPS, RecordingProgress, fit_tiny
from tests.training.tiny import DIM, Points


def make_batch(position):
    batches = Points()
    batches.position = position
    return next(batches)


@pytest.fixture(scope="module")
def arrays():
    return [make_batch(position) for position in range(5)]


class Tensor:
    """An array of another library: only `numpy.asarray` reads it."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


def as_jax(batch):
    return jax.tree.map(jnp.asarray, batch)


def on_devices(batch):
    return jax.device_put(batch, batch_sharding(make_mesh()))


ITERABLES = {
    "list": list,
    "generator": lambda batches: (batch for batch in batches),
    "jax": lambda batches: map(as_jax, batches),
    "sharded": lambda batches: map(on_devices, batches),
    "tensors": lambda batches: [Batch(Tensor(batch.x1)) for batch in batches],
    "float64": lambda batches: [Batch(batch.x1.astype(np.float64)) for batch in batches],
    "grain": lambda batches: grain.MapDataset.source(batches).to_iter_dataset(),
}


@pytest.mark.parametrize("kind", ITERABLES)
def test_every_iterable_gives_its_batches_on_the_mesh(kind, arrays):
    mesh = make_mesh()
    feed = Feed(ITERABLES[kind](arrays), mesh, 5)
    for step, expected in enumerate(arrays, 1):
        feed.fetch(step)
        batch = feed.take()
        np.testing.assert_array_equal(batch.x1, expected.x1)
        assert (batch.x1.dtype, batch.x1.sharding) == (jnp.float32, batch_sharding(mesh))
    assert feed.can_resume == (kind == "grain")
    with pytest.raises(ValueError, match="for each step up to 5, got none for step 6"):
        feed.fetch(6)


def test_batches_may_be_any_pytree():
    feed = Feed([{"x": np.ones((8, 2)), "mask": np.ones(8, bool)}], make_mesh(), 1)
    feed.fetch(1)
    batch = feed.take()
    assert {name: array.dtype for name, array in batch.items()} == {"x": "float32", "mask": "bool"}


X = np.zeros((16, DIM), np.float32)
LABELS = np.zeros(16, np.int32)
CHANGES = {
    "rows": (Batch(X[:13], LABELS[:13]), "x1 like the first batch, .*(16, 4), got .*(13, 4)"),
    "dtype": (Batch(X, LABELS.astype(np.float32)), "cond like .*int32 of.*, got float32 of"),
    "missing": (Batch(X), "the arrays of the first batch, a Batch of x1, cond, got a Batch of x1"),
    "more": (Batch(X, LABELS, X), "a Batch of x1, cond, got a Batch of x1, cond, x0"),
    "container": ({"x1": X, "cond": LABELS}, "a Batch of x1, cond, got a dict of cond, x1"),
    "pytree": (Batch({"x": X}, LABELS), "a Batch of x1, cond, got a Batch of x1.x, cond"),
    "text": (Batch(X, np.array(["a"] * 16)), "batch must hold arrays of numbers, got <U1 of shape"),
    "keys": (Batch(X, jax.random.split(jax.random.key(0), 16)), "must hold arrays of numbers, got"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_batch_that_changes_is_rejected(change, unchecked):
    batch, message = CHANGES[change]
    feed = Feed([Batch(X, LABELS), batch], make_mesh(), 2)
    feed.fetch(1)
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(ValueError, match=pattern) as error:
        feed.fetch(2)
    assert "\n" not in str(error.value)
    assert change in ("text", "keys") or str(error.value).startswith("batch of step 2 must have ")


@pytest.mark.parametrize("batches", [5, None, Batch(X), {"x1": X}, X, "x1"])
def test_batches_that_are_no_iterable_of_batches_are_rejected(batches, unchecked):
    with pytest.raises(ValueError, match="batches must be an iterator or iterable of batches, got"):
        Feed(batches, make_mesh(), 1)


def warnings_of(caplog):
    return [record.message for record in caplog.records if record.name == "fmjax"]


def test_training_from_a_generator_equals_training_from_its_iterator(arrays, caplog):
    states = [fit_tiny(batches=batches) for batches in (Points(), iter(arrays), arrays)]
    for state in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, state.params, states[0].params)
    assert warnings_of(caplog) == []  # There are no checkpoints.


@pytest.mark.slow
def test_a_position_that_cannot_be_saved_is_logged_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "fmjax"):
        run(tmp_path, 4, batches=(make_batch(step) for step in range(4)))
    (message,) = warnings_of(caplog)
    assert message.startswith("batches has no get_state and set_state, so checkpoints do not")
    # The next run continues from the checkpoint, with the batches that it is given.
    progress = RecordingProgress()
    batches = [make_batch(step) for step in range(4, 8)]
    state = run(tmp_path, 8, batches=batches, progress=progress)
    assert progress.messages == ["resumed from step 4"]
    uninterrupted = run(tmp_path / "uninterrupted", 8)
    jax.tree.map(np.testing.assert_array_equal, state.params, uninterrupted.params)
    with pytest.raises(ValueError, match="checkpoint of step 8 must contain the positions of the"):
        run(tmp_path, NUM_STEPS)


class Positions:
    """Random access to batches, for `grain.DataLoader`."""

    def __repr__(self):
        return "Positions()"  # Saved with the position.

    def __len__(self):
        return 100

    def __getitem__(self, index):
        return make_batch(index)


def grain_dataset():
    return grain.MapDataset.range(100).map(make_batch).to_iter_dataset()


def grain_loader():
    """Data whose iterator gives its position as bytes."""
    sampler = grain.samplers.SequentialSampler(100, grain.sharding.NoSharding())
    return grain.DataLoader(data_source=Positions(), sampler=sampler)


@pytest.mark.slow
@pytest.mark.parametrize("make_batches", [grain_dataset, grain_loader])
def test_grain_iterators_resume_at_their_position(make_batches, tmp_path, caplog):
    uninterrupted = run(tmp_path / "uninterrupted", NUM_STEPS)
    stopped = tmp_path / "stopped"
    run(stopped, 6, batches=make_batches())
    with Checkpoints(stopped / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 6
    state = run(stopped, NUM_STEPS, batches=make_batches())
    jax.tree.map(np.testing.assert_array_equal, state.params, uninterrupted.params)
    assert warnings_of(caplog) == []
