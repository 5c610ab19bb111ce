"""Arrays and CIFAR-10 from a folder: read back as written, refused when missing or damaged."""

import numpy as np
import pytest

from fmjax._arrays import TextShape
from fmjax.data import ArrayData, Cifar10Data, batches, load

X = np.arange(12, dtype=np.float32).reshape(3, 4)
LABELS = np.array([0, 2, 1])


def test_an_npz_is_read_back_as_written(tmp_path):
    np.savez(tmp_path / "train.npz", x=X, labels=LABELS)
    np.savez(tmp_path / "test.npz", x=X[:1], labels=LABELS[:1])
    train, test = (load(ArrayData(str(tmp_path)), split) for split in ("train", "test"))
    np.testing.assert_array_equal(train.x, X)
    np.testing.assert_array_equal(train.labels, LABELS)
    # The one label of the test split is 0; the classes are those of the train split.
    assert (train.num_classes, test.num_classes) == (3, 3)
    assert load(ArrayData(str(tmp_path), num_classes=5)).num_classes == 5


def test_npy_files_are_mapped_and_delivered(tmp_path):
    np.save(tmp_path / "train_x.npy", X.astype(np.float16))
    np.save(tmp_path / "train_labels.npy", LABELS)
    dataset = load(ArrayData(str(tmp_path)))
    assert isinstance(dataset.x, np.memmap)
    batch = next(batches(dataset, batch_size=3))
    np.testing.assert_array_equal(batch.x1[np.argsort(batch.x1[:, 0])], X)
    assert batch.x1.dtype == np.float32


def test_arrays_unconditional_are_unconditional(tmp_path):
    np.savez(tmp_path / "train.npz", x=X)
    np.save(tmp_path / "test_x.npy", X)
    for split in ("train", "test"):
        assert load(ArrayData(str(tmp_path)), split).num_classes is None


def test_a_shape_that_is_given_is_known_without_files_and_classes_are_read_where_they_are(tmp_path):
    source = ArrayData(str(tmp_path), event_shape=X.shape[1:])
    assert source.shape() == (X.shape[1:], None)
    np.savez(tmp_path / "train.npz", x=X, labels=LABELS)
    assert source.shape() == (X.shape[1:], LABELS.max() + 1)
    assert ArrayData("nowhere", 7, (3,)).shape() == ((3,), 7)


def test_missing_and_damaged_arrays_are_refused(tmp_path):
    source = ArrayData(str(tmp_path))
    with pytest.raises(
        ValueError, match=r"data.folder must hold train.npz, written by numpy.savez"
    ):
        load(source)
    np.savez(tmp_path / "train.npz", y=X)
    with pytest.raises(ValueError, match=r"train.npz must hold an array x, got \['y'\]"):
        load(source)
    np.savez(tmp_path / "train.npz", x=X)
    whole = (tmp_path / "train.npz").read_bytes()
    damaged = whole[:80] + bytes(8) + whole[88:]
    for broken in (whole[:-30], b"", b"nothing of the kind", damaged):
        (tmp_path / "train.npz").write_bytes(broken)
        with pytest.raises(ValueError, match=r"train.npz must be a whole .npz file"):
            load(source)
    (tmp_path / "train_x.npy").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"train_x.npy must be a whole .npy file"):
        load(source)


def test_arrays_that_would_need_pickle_are_refused(tmp_path):
    np.savez(tmp_path / "train.npz", x=np.array([{}, {}], dtype=object))
    with pytest.raises(ValueError, match=r"train.npz must be a whole .npz file.*pickle"):
        load(ArrayData(str(tmp_path)))


def test_labels_of_the_test_split_alone_are_refused(tmp_path):
    np.savez(tmp_path / "train.npz", x=X)
    np.savez(tmp_path / "test.npz", x=X, labels=LABELS)
    with pytest.raises(ValueError, match="must label the train split too, got none"):
        load(ArrayData(str(tmp_path)), "test")


def write_cifar10(folder, images, labels):
    """Two records a file, as the published binary version has ten thousand."""
    channels_first = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    records = np.concatenate([labels[:, None], channels_first], axis=1)
    names = [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]
    for name, two in zip(names, np.split(records, 6), strict=True):
        two.tofile(folder / name)


def test_cifar10_is_read_back_as_written(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(256, size=(12, 32, 32, 3), dtype=np.uint8)
    labels = generator.integers(10, size=12, dtype=np.uint8)
    write_cifar10(tmp_path, images, labels)
    source = Cifar10Data(str(tmp_path))
    train, test = load(source), load(source, "test")
    np.testing.assert_array_equal(train.x, images[:10])
    np.testing.assert_array_equal(test.x, images[10:])
    np.testing.assert_array_equal(train.labels, labels[:10])


def test_missing_and_damaged_cifar10_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data.folder must hold test_batch.bin .*https://"):
        load(Cifar10Data(str(tmp_path)), "test")
    (tmp_path / "test_batch.bin").write_bytes(bytes(3072))
    with pytest.raises(ValueError, match=r"test_batch.bin must hold whole records of 3073 bytes"):
        load(Cifar10Data(str(tmp_path)), "test")


def test_text_stands_in_the_place_of_labels(tmp_path):
    rng = np.random.default_rng(0)
    text, pooled = rng.standard_normal((3, 5, 8), np.float32), rng.standard_normal((3, 6))
    for name, array in {"x": X, "text": text.astype(np.float16), "pooled": pooled}.items():
        np.save(tmp_path / f"train_{name}.npy", array)
    np.savez(tmp_path / "test.npz", x=X, text=text, pooled=pooled)
    shape = TextShape(5, 8, 6)
    for split in ("train", "test"):
        dataset = load(ArrayData(str(tmp_path), text=shape), split)
        assert dataset.conditions == shape
    assert ArrayData(str(tmp_path)).shape() == ((4,), shape)
    batch = dataset.examples(np.array([2, 0]))
    np.testing.assert_array_equal(batch.cond.tokens, text[[2, 0]])
    np.testing.assert_array_equal(batch.cond.pooled, pooled[[2, 0]].astype(np.float32))
    assert batch.cond.guidance is None
    assert dataset.unconditional().examples().cond is None
    with pytest.raises(ValueError, match="must hold text of TextShape.*=4.*, got TextShape.*=5"):
        load(ArrayData(str(tmp_path), text=TextShape(4, 8, 6)))


def test_text_without_its_other_half_or_of_too_few_examples_is_refused(tmp_path):
    np.savez(tmp_path / "train.npz", x=X, text=np.zeros((3, 5, 8)))
    with pytest.raises(ValueError, match="must hold text and pooled together"):
        load(ArrayData(str(tmp_path)))
    np.savez(tmp_path / "train.npz", x=X, text=np.zeros((2, 5, 8)), pooled=np.zeros((3, 6)))
    with pytest.raises(ValueError, match=r"text must be \[3, tokens, width\] and \[3, width\]"):
        load(ArrayData(str(tmp_path)))
