"""Tests of batch iterators: epoch order, process shares, flips, resuming and source noise."""

import numpy as np
import pytest

from fmjax.data import Dataset, batches

IMAGES = np.arange(10 * 2 * 3, dtype=np.float32).reshape(10, 2, 3, 1)


def index_dataset(num_examples: int) -> Dataset:
    """Return a dataset in which each example is its index."""
    return Dataset(x=np.arange(num_examples, dtype=np.float32)[:, None])


def image_dataset() -> Dataset:
    return Dataset(x=IMAGES, labels=np.arange(10), num_classes=10)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_batches_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a.x1, b.x1)
        np.testing.assert_array_equal(a.cond, b.cond)


def test_each_epoch_has_every_example_once_in_a_new_order():
    iterator = batches(index_dataset(12), batch_size=4, seed=1)
    first, second = (np.concatenate([b.x1[:, 0] for b in take(iterator, 3)]) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(12))
    assert list(first) != list(second) != list(range(12))


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 4), (3, 8)])
def test_batches_continue_across_epoch_boundaries(num_examples, batch_size):
    iterator = batches(index_dataset(num_examples), batch_size=batch_size)
    values = np.concatenate([b.x1[:, 0] for b in take(iterator, 2 * num_examples)])
    for epoch in np.split(values, 2 * batch_size):
        assert sorted(epoch) == list(range(num_examples))


def test_the_order_depends_only_on_the_seed():
    orders = [
        next(batches(index_dataset(100), batch_size=100, seed=seed)).x1[:, 0].tolist()
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("num_processes", [2, 4])
def test_process_shares_concatenate_to_the_global_batch(num_processes):
    full = take(batches(image_dataset(), batch_size=8, seed=3, flip=True), 5)
    shares = [
        take(
            batches(
                image_dataset(),
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
    for step, batch in enumerate(full):
        parts = [share[step] for share in shares]
        np.testing.assert_array_equal(np.concatenate([p.x1 for p in parts]), batch.x1)
        np.testing.assert_array_equal(np.concatenate([p.cond for p in parts]), batch.cond)


def test_the_state_counts_delivered_batches_not_prefetched_ones():
    iterator = batches(image_dataset(), batch_size=4, read_ahead=8)
    assert iterator.get_state() == {"next_batch": 0}
    take(iterator, 3)
    assert iterator.get_state() == {"next_batch": 3}


@pytest.mark.parametrize("num_processes", [1, 2])
def test_resuming_is_exact_for_any_process_count(num_processes):
    uninterrupted = batches(image_dataset(), batch_size=4, seed=5, flip=True)
    take(uninterrupted, 7)
    state = uninterrupted.get_state()
    expected = take(uninterrupted, 4)
    resumed = [
        batches(
            image_dataset(),
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


def test_setting_an_earlier_state_repeats_the_batches():
    iterator = batches(image_dataset(), batch_size=4)
    state = iterator.get_state()
    first = take(iterator, 3)
    iterator.set_state(state)
    assert_batches_equal(take(iterator, 3), first)


def test_flip_mirrors_the_width_of_half_of_the_images():
    plain = np.concatenate([b.x1 for b in take(batches(image_dataset(), batch_size=10), 40)])
    flipped = np.concatenate(
        [b.x1 for b in take(batches(image_dataset(), batch_size=10, flip=True), 40)]
    )
    mirrored = (flipped == plain[:, :, ::-1]).all(axis=(1, 2, 3))
    unchanged = (flipped == plain).all(axis=(1, 2, 3))
    assert (mirrored ^ unchanged).all()
    # Four standard deviations of 400 fair coin flips are 40.
    assert abs(mirrored.sum() - 200) < 40


def test_flip_mirrors_the_mask_with_the_image():
    mask = IMAGES % 2 == 0
    for batch in take(batches(Dataset(IMAGES, mask=mask), batch_size=10, flip=True), 4):
        np.testing.assert_array_equal(batch.mask, batch.x1 % 2 == 0)
    dataset = Dataset(IMAGES, mask=mask[:, :, 0, 0])
    batch = next(batches(dataset, batch_size=10, flip=True))
    np.testing.assert_array_equal(batch.mask, batch.x1.min(axis=(2, 3)) % 2 == 0)


def test_flip_does_not_modify_the_dataset():
    take(batches(image_dataset(), batch_size=10, flip=True), 4)
    np.testing.assert_array_equal(image_dataset().x, np.arange(60.0).reshape(10, 2, 3, 1))


def test_pixels_become_float32_in_minus_one_to_one_and_labels_int32():
    pixels = np.array([0, 51, 255], dtype=np.uint8).reshape(3, 1, 1, 1)
    batch = next(batches(Dataset(pixels, np.array([0, 1, 2], np.uint8), 3), batch_size=3))
    order = np.argsort(batch.cond)
    assert batch.x1.dtype == np.float32
    assert batch.cond.dtype == np.int32
    np.testing.assert_allclose(batch.x1[order].ravel(), [-1, -0.6, 1], atol=1e-7)


def test_unconditional_datasets_have_no_condition():
    assert next(batches(index_dataset(4), batch_size=2)).cond is None


def test_a_closed_iterator_raises_on_next():
    iterator = batches(index_dataset(4), batch_size=2)
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
def test_invalid_settings_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        batches(index_dataset(8), **settings)


@pytest.mark.parametrize("state", [{}, {"next_batch": -1}, {"next_index": 3}])
def test_invalid_states_are_rejected(state):
    with pytest.raises(ValueError, match="state must be {'next_batch': count}"):
        batches(index_dataset(8), batch_size=4).set_state(state)


def test_source_noise_is_fresh_and_independent_of_the_process_count():
    settings = dict(source=index_dataset(8), source_noise=0.5, batch_size=4, seed=3)
    noisy = take(batches(index_dataset(8), **settings), 500)
    plain = take(batches(index_dataset(8), **settings | {"source_noise": 0.0}), 500)
    noise = np.concatenate([a.x0 - b.x0 for a, b in zip(noisy, plain, strict=True)])
    assert noise.dtype == np.float32
    # The noise is fresh, although every source point occurs 250 times.
    assert len(np.unique(noise)) > 1990
    # Four standard errors of the moments of 2,000 normal samples.
    assert abs(noise.mean()) < 4 * 0.5 / 2000**0.5
    assert abs(noise.std() - 0.5) < 4 * 0.5 / 4000**0.5
    assert abs(np.mean(np.abs(noise) < 0.5) - 0.6827) < 4 * (0.6827 * 0.3173 / 2000) ** 0.5
    iterators = (
        batches(index_dataset(8), **settings, num_processes=2, process_index=n) for n in (0, 1)
    )
    parts = [take(iterator, 3) for iterator in iterators]
    for step in range(3):
        shares = np.concatenate([part[step].x0 for part in parts])
        np.testing.assert_array_equal(shares, noisy[step].x0)
