"""Tests of encoded examples and pairs read from record folders."""

import numpy as np
import pytest

from fmjax._arrays import TextPart, TextShape
from fmjax._specs import as_cond_spec
from fmjax.data import (
    EncodedData,
    NoSuchSplit,
    RecordManifest,
    encoded_manifest,
    open_pairs,
    pair_fields,
    prepare_records,
    write_shard,
)

NUM, EVENT = 6, (2, 2, 4)
TEXT = TextShape(3, 5, 7, (TextPart((0, 3), (0, 5), (0, 7)),))


def write_shards(folder, manifest, arrays):
    """Write all shards of the arrays."""
    prepare_records(folder, manifest)
    for number in range(manifest.num_shards):
        rows = manifest.examples(number)
        part = {name: array[rows.start : rows.stop] for name, array in arrays.items()}
        write_shard(folder, manifest, number, part)


@pytest.fixture
def encoded(tmp_path):
    """Return a folder of encoded examples and its arrays."""
    rng = np.random.default_rng(0)
    shapes = {"latents": EVENT, "tokens": (3, 5), "pooled": (7,)}
    arrays = {
        name: rng.standard_normal((NUM, *shape)).astype(np.float16)
        for name, shape in shapes.items()
    }
    manifest = encoded_manifest(
        EVENT, TEXT, NUM, dtype="float16", examples_per_shard=4, origin={"model": "sd3"}
    )
    write_shards(tmp_path / "train", manifest, arrays)
    return tmp_path, arrays


def test_encoded_examples_are_read_back_as_written(encoded):
    folder, arrays = encoded
    data = EncodedData(str(folder))
    assert data.shape() == (EVENT, TEXT)
    dataset = data.load("train")
    assert (len(dataset), dataset.event_shape, dataset.conditions) == (NUM, EVENT, TEXT)
    indices = np.array([5, 0, 3])
    batch = dataset.examples(indices)
    np.testing.assert_array_equal(batch.x1, arrays["latents"][indices])
    np.testing.assert_array_equal(batch.cond.tokens, arrays["tokens"][indices])
    np.testing.assert_array_equal(batch.cond.pooled, arrays["pooled"][indices])
    for array in (batch.x1, batch.cond.tokens, batch.cond.pooled):
        assert array.dtype == np.float32


def test_other_example_shapes_and_splits_are_rejected(encoded):
    folder, _ = encoded
    with pytest.raises(ValueError, match=r"must hold examples of \(2, 2, 16\), got \(2, 2, 4\)"):
        EncodedData(str(folder), event_shape=(2, 2, 16)).load("train")
    with pytest.raises(NoSuchSplit, match="data.folder must hold test"):
        EncodedData(str(folder)).load("test")


@pytest.mark.parametrize("num_classes", [None, 3])
def test_pairs_are_read_back_as_written(tmp_path, num_classes):
    rng = np.random.default_rng(0)
    x0, x1 = rng.standard_normal((2, NUM, *EVENT), np.float32)
    arrays = {"x0": x0, "x1": x1}
    if num_classes is not None:
        arrays["label"] = np.arange(NUM, dtype=np.int32) % num_classes
    fields = pair_fields(EVENT, num_classes is not None)
    write_shards(tmp_path / "pairs", RecordManifest(fields, NUM, 4, {}), arrays)
    pairs = open_pairs(tmp_path / "pairs", EVENT, num_classes)
    assert (len(pairs), pairs.event_shape, pairs.conditions) == (
        NUM,
        EVENT,
        as_cond_spec(num_classes),
    )
    indices = np.array([4, 1])
    batch = pairs.examples(indices)
    np.testing.assert_array_equal(batch.x0, x0[indices])
    np.testing.assert_array_equal(batch.x1, x1[indices])
    if num_classes is not None:
        np.testing.assert_array_equal(batch.cond, arrays["label"][indices])
    with pytest.raises(ValueError, match="must hold pairs of x0"):
        open_pairs(tmp_path / "pairs", (3,), num_classes)
