"""Laws of the batches: once per epoch, the same for any process count, resumed exactly."""

import numpy as np
import pytest

from fmjax.data import Dataset, batches

IMAGES = np.arange(10 * 2 * 3, dtype=np.float32).reshape(10, 2, 3, 1)


def numbered(num_examples: int) -> Dataset:
    """Each example is its own number."""
    return Dataset(x=np.arange(num_examples, dtype=np.float32)[:, None])


def images() -> Dataset:
    return Dataset(x=IMAGES, labels=np.arange(10), num_classes=10)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_equal_batches(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a.x1, b.x1)
        np.testing.assert_array_equal(a.cond, b.cond)


def test_every_example_comes_once_per_epoch_in_a_new_order():
    iterator = batches(numbered(12), batch_size=4, seed=1)
    first, second = (np.concatenate([b.x1[:, 0] for b in take(iterator, 3)]) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(12))
    assert list(first) != list(second) != list(range(12))


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 4), (3, 8)])
def test_batches_run_on_across_the_end_of_an_epoch(num_examples, batch_size):
    iterator = batches(numbered(num_examples), batch_size=batch_size)
    taken = np.concatenate([b.x1[:, 0] for b in take(iterator, 2 * num_examples)])
    for epoch in np.split(taken, 2 * batch_size):
        assert sorted(epoch) == list(range(num_examples))


def test_the_seed_decides_the_order():
    orders = [
        next(batches(numbered(100), batch_size=100, seed=seed)).x1[:, 0].tolist()
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("num_processes", [2, 4])
def test_the_shares_of_all_processes_are_the_batch_of_one(num_processes):
    whole = take(batches(images(), batch_size=8, seed=3, flip=True), 5)
    shares = [
        take(
            batches(
                images(),
                batch_size=8,
                seed=3,
                flip=True,
                num_processes=num_processes,
                process_index=index,
            ),
            5,
        )
        for index in range(num_processes)
    ]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        np.testing.assert_array_equal(np.concatenate([p.x1 for p in parts]), batch.x1)
        np.testing.assert_array_equal(np.concatenate([p.cond for p in parts]), batch.cond)


def test_a_state_counts_the_batches_taken_not_those_read_ahead():
    iterator = batches(images(), batch_size=4, read_ahead=8)
    assert iterator.get_state() == {"next_batch": 0}
    take(iterator, 3)
    assert iterator.get_state() == {"next_batch": 3}


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_state_resumes_exactly_under_another_process_count(num_processes):
    unbroken = batches(images(), batch_size=4, seed=5, flip=True)
    take(unbroken, 7)
    state = unbroken.get_state()
    expected = take(unbroken, 4)
    resumed = [
        batches(
            images(),
            batch_size=4,
            seed=5,
            flip=True,
            num_processes=num_processes,
            process_index=index,
        )
        for index in range(num_processes)
    ]
    for iterator in resumed:
        take(iterator, 2)
        iterator.set_state(state)
    for batch in expected:
        parts = [next(iterator) for iterator in resumed]
        np.testing.assert_array_equal(np.concatenate([p.x1 for p in parts]), batch.x1)
        np.testing.assert_array_equal(np.concatenate([p.cond for p in parts]), batch.cond)


def test_a_state_can_go_back():
    iterator = batches(images(), batch_size=4)
    state = iterator.get_state()
    first = take(iterator, 3)
    iterator.set_state(state)
    assert_equal_batches(take(iterator, 3), first)


def test_a_flip_mirrors_the_width_of_half_of_the_images_and_nothing_else():
    plain = np.concatenate([b.x1 for b in take(batches(images(), batch_size=10), 40)])
    flipped = np.concatenate([b.x1 for b in take(batches(images(), batch_size=10, flip=True), 40)])
    mirrored = (flipped == plain[:, :, ::-1]).all(axis=(1, 2, 3))
    untouched = (flipped == plain).all(axis=(1, 2, 3))
    assert (mirrored ^ untouched).all()
    # 400 fair coins: 4 standard deviations are 40.
    assert abs(mirrored.sum() - 200) < 40


def test_flips_leave_the_examples_of_the_set_as_they_are():
    take(batches(images(), batch_size=10, flip=True), 4)
    np.testing.assert_array_equal(images().x, np.arange(60.0).reshape(10, 2, 3, 1))


def test_pixels_come_as_float32_from_minus_one_to_one_and_labels_as_int32():
    pixels = np.array([0, 51, 255], dtype=np.uint8).reshape(3, 1, 1, 1)
    batch = next(batches(Dataset(pixels, np.array([0, 1, 2], np.uint8), 3), batch_size=3))
    order = np.argsort(batch.cond)
    assert batch.x1.dtype == np.float32
    assert batch.cond.dtype == np.int32
    np.testing.assert_allclose(batch.x1[order].ravel(), [-1, -0.6, 1], atol=1e-7)


def test_an_unconditional_set_has_no_condition():
    assert next(batches(numbered(4), batch_size=2)).cond is None


def test_a_closed_iterator_gives_no_more():
    iterator = batches(numbered(4), batch_size=2)
    next(iterator)
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 4, "seed": -1}, "seed must be at least 0, got -1"),
        ({"batch_size": 4, "num_processes": 0}, "num_processes must be at least 1, got 0"),
        (
            {"batch_size": 4, "num_processes": 3},
            "batch_size must be divisible by 3, the number of processes, got 4",
        ),
        (
            {"batch_size": 4, "num_processes": 2, "process_index": 2},
            r"process_index must lie in \[0, 2\), got 2",
        ),
        ({"batch_size": 4, "flip": True}, r"flip must be off unless x is \[n, h, w, c\], got"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        batches(numbered(8), **settings)


@pytest.mark.parametrize("state", [{}, {"next_batch": -1}, {"next_index": 3}])
def test_a_state_of_something_else_is_refused(state):
    with pytest.raises(ValueError, match="state must be {'next_batch': count}"):
        batches(numbered(8), batch_size=4).set_state(state)


def test_source_points_get_noise_of_their_own_in_every_batch_for_any_process_count():
    asked = dict(source=numbered(8), source_noise=0.5, batch_size=4, seed=3)
    whole = take(batches(numbered(8), **asked), 500)
    plain = take(batches(numbered(8), **asked | {"source_noise": 0.0}), 500)
    noise = np.concatenate([a.x0 - b.x0 for a, b in zip(whole, plain, strict=True)])
    assert noise.dtype == np.float32
    # Anew each time, though every source point comes 250 times.
    assert len(np.unique(noise)) > 1990
    # Of 2,000 draws: within four standard errors of a normal's moments.
    assert abs(noise.mean()) < 4 * 0.5 / 2000**0.5
    assert abs(noise.std() - 0.5) < 4 * 0.5 / 4000**0.5
    assert abs(np.mean(np.abs(noise) < 0.5) - 0.6827) < 4 * (0.6827 * 0.3173 / 2000) ** 0.5
    halves = (batches(numbered(8), **asked, num_processes=2, process_index=n) for n in (0, 1))
    parts = [take(half, 3) for half in halves]
    for number in range(3):
        shares = np.concatenate([part[number].x0 for part in parts])
        np.testing.assert_array_equal(shares, whole[number].x0)
