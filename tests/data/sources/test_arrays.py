"""Tests of ArrayData and Cifar10Data: reading and rejecting missing or damaged files."""

import math
import re
import struct
import zipfile

import numpy as np
import pytest

from fmjax._arrays import TextShape
from fmjax._specs import Spec, class_spec
from fmjax.data import ArrayData, Cifar10Data, batches, fit_standardization, load

X = np.arange(12, dtype=np.float32).reshape(3, 4)
LABELS = np.array([0, 2, 1])


def test_npz_files_are_read_back_as_written(tmp_path):
    np.savez(tmp_path / "train.npz", x=X, labels=LABELS)
    np.savez(tmp_path / "test.npz", x=X[:1], labels=LABELS[:1])
    train, test = (load(ArrayData(str(tmp_path)), split) for split in ("train", "test"))
    np.testing.assert_array_equal(train.x, X)
    np.testing.assert_array_equal(train.labels, LABELS)
    # The test split has only label 0, but uses the classes of the train split.
    assert (train.num_classes, test.num_classes) == (3, 3)
    assert load(ArrayData(str(tmp_path), num_classes=5)).num_classes == 5


def test_npy_files_are_memory_mapped_and_batched(tmp_path):
    np.save(tmp_path / "train_x.npy", X.astype(np.float16))
    np.save(tmp_path / "train_labels.npy", LABELS)
    dataset = load(ArrayData(str(tmp_path)))
    assert isinstance(dataset.x, np.memmap)
    batch = next(batches(dataset, batch_size=3))
    np.testing.assert_array_equal(batch.x1[np.argsort(batch.x1[:, 0])], X)
    assert batch.x1.dtype == np.float32


def test_arrays_without_labels_are_unconditional(tmp_path):
    np.savez(tmp_path / "train.npz", x=X)
    np.save(tmp_path / "test_x.npy", X)
    for split in ("train", "test"):
        assert load(ArrayData(str(tmp_path)), split).num_classes is None


def test_shape_needs_files_only_for_values_that_are_not_set(tmp_path):
    data = ArrayData(str(tmp_path), event_shape=X.shape[1:])
    assert data.shape() == (X.shape[1:], None)
    np.savez(tmp_path / "train.npz", x=X, labels=LABELS)
    assert data.shape() == (X.shape[1:], class_spec(int(LABELS.max()) + 1))
    assert ArrayData("nowhere", 7, (3,)).shape() == ((3,), class_spec(7))


def test_missing_and_damaged_arrays_are_rejected(tmp_path):
    data = ArrayData(str(tmp_path))
    with pytest.raises(
        ValueError, match=r"data.folder must hold train.npz, written by numpy.savez"
    ):
        load(data)
    np.savez(tmp_path / "train.npz", y=X)
    with pytest.raises(ValueError, match=r"train.npz must hold an array x, got \['y'\]"):
        load(data)
    np.savez(tmp_path / "train.npz", x=X)
    content = (tmp_path / "train.npz").read_bytes()
    damaged = content[:80] + bytes(8) + content[88:]
    for invalid in (content[:-30], b"", b"nothing of the kind", damaged):
        (tmp_path / "train.npz").write_bytes(invalid)
        with pytest.raises(ValueError, match=r"train.npz must be a valid .npz file"):
            load(data)
    (tmp_path / "train_x.npy").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"train_x.npy must be a valid .npy file"):
        load(data)


def test_arrays_that_require_pickle_are_rejected(tmp_path):
    np.savez(tmp_path / "train.npz", x=np.array([{}, {}], dtype=object))
    with pytest.raises(ValueError, match=r"train.npz must be a valid .npz file.*pickle"):
        load(ArrayData(str(tmp_path)))


def test_labels_only_in_the_test_split_are_rejected(tmp_path):
    np.savez(tmp_path / "train.npz", x=X)
    np.savez(tmp_path / "test.npz", x=X, labels=LABELS)
    with pytest.raises(ValueError, match="must hold labels of the train split too, got none"):
        load(ArrayData(str(tmp_path)), "test")


def write_cifar10(folder, images, labels):
    """Write two records per file; the published files have ten thousand."""
    channels_first = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    records = np.concatenate([labels[:, None], channels_first], axis=1)
    names = [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]
    for name, part in zip(names, np.split(records, 6), strict=True):
        part.tofile(folder / name)


def test_cifar10_is_read_back_as_written(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(256, size=(12, 32, 32, 3), dtype=np.uint8)
    labels = generator.integers(10, size=12, dtype=np.uint8)
    write_cifar10(tmp_path, images, labels)
    data = Cifar10Data(str(tmp_path))
    train, test = load(data), load(data, "test")
    np.testing.assert_array_equal(train.x, images[:10])
    np.testing.assert_array_equal(test.x, images[10:])
    np.testing.assert_array_equal(train.labels, labels[:10])


def test_missing_and_damaged_cifar10_files_are_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"data.folder must hold test_batch.bin .*https://"):
        load(Cifar10Data(str(tmp_path)), "test")
    (tmp_path / "test_batch.bin").write_bytes(bytes(3072))
    with pytest.raises(ValueError, match=r"test_batch.bin must hold complete records of 3073"):
        load(Cifar10Data(str(tmp_path)), "test")
    (tmp_path / "test_batch.bin").write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(ValueError, match=r"test_batch.bin must hold labels 0 to 9, got 10"):
        load(Cifar10Data(str(tmp_path)), "test")


def test_text_arrays_are_the_condition_instead_of_labels(tmp_path):
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


def test_incomplete_text_arrays_are_rejected(tmp_path):
    np.savez(tmp_path / "train.npz", x=X, text=np.zeros((3, 5, 8)))
    with pytest.raises(ValueError, match="must hold both text and pooled"):
        load(ArrayData(str(tmp_path)))
    np.savez(tmp_path / "train.npz", x=X, text=np.zeros((2, 5, 8)), pooled=np.zeros((3, 6)))
    with pytest.raises(ValueError, match=r"text must be \[3, tokens, width\] and \[3, width\]"):
        load(ArrayData(str(tmp_path)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, np.inf, 1]), "labels must be 3 integers, got float64 of shape (3,)"),
        (np.array([0, np.nan, 1]), "labels must be 3 integers, got float64 of shape (3,)"),
        (np.array([0, 1j, 1]), "labels must be 3 integers, got complex128 of shape (3,)"),
        (np.zeros(3, "V4"), "labels must be 3 integers, got |V4 of shape (3,)"),
        (np.zeros(3, [("a", "i4")]), "labels must be 3 integers, got [('a', '<i4')] of shape (3,)"),
        (np.zeros(3, bool), "labels must be 3 integers, got bool of shape (3,)"),
        (np.array(["a", "b", "c"]), "labels must be 3 integers, got <U1 of shape (3,)"),
        (np.zeros((3, 1), int), "labels must be 3 integers, got int64 of shape (3, 1)"),
        (np.zeros(2, int), "labels must be 3 integers, got int64 of shape (2,)"),
        (np.array(0), "labels must be 3 integers, got int64 of shape ()"),
        (
            np.array([0, 2**60, 1]),
            "labels must be below 100000 unless data.num_classes is set",
        ),
        (
            np.array([0, 2**63 + 1, 1], np.uint64),
            f"data.num_classes is set, got {2**63 + 1}",
        ),
        (np.array([0, -1, 1]), "labels must lie in [0, 2), got -1 to 1"),
    ],
)
@pytest.mark.parametrize("mapped", [True, False])
def test_invalid_labels_are_rejected_with_their_file(tmp_path, labels, message, mapped):
    name = "train_labels.npy" if mapped else "train.npz"
    if mapped:
        np.save(tmp_path / "train_x.npy", X)
        np.save(tmp_path / name, labels)
    else:
        np.savez(tmp_path / name, x=X, labels=labels)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load(ArrayData(str(tmp_path)))
    assert str(error.value).startswith(f"file {tmp_path / name}: labels must")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X.astype(complex), "be uint8 or floating point, got complex128"),
        (X.astype("U3"), "be uint8 or floating point, got <U3"),
        (X > 3, "be uint8 or floating point, got bool"),
        (np.zeros(3, [("a", "f4")]), "be uint8 or floating point, got [('a', '<f4')]"),
        (X[:, 0], "be [num_examples, *event], got shape (3,)"),
        (np.float32(3), "be [num_examples, *event], got shape ()"),
        (X[:0], "hold at least one example, got shape (0, 4)"),
        (X[:, :0], "hold at least one number per example, got shape (3, 0)"),
    ],
)
def test_invalid_examples_are_rejected_with_their_file(tmp_path, x, message):
    np.savez(tmp_path / "train.npz", x=x)
    with pytest.raises(ValueError, match=re.escape(f"train.npz: x must {message}")):
        load(ArrayData(str(tmp_path)))


def test_byte_and_axis_orders_do_not_change_the_values(tmp_path):
    for x in (np.asfortranarray(X), X.astype(">f8"), X.astype(np.float16)[::1]):
        np.save(tmp_path / "train_x.npy", x)
        np.save(tmp_path / "train_labels.npy", LABELS.astype(">i8"))
        batch = load(ArrayData(str(tmp_path))).examples(np.array([2, 0]))
        np.testing.assert_array_equal(batch.x1, X[[2, 0]])
        np.testing.assert_array_equal(batch.cond, [1, 0])


def test_files_with_the_name_of_another_format_are_rejected(tmp_path):
    np.savez(tmp_path / "train.npz", x=X)
    (tmp_path / "train.npz").rename(tmp_path / "train_x.npy")
    with pytest.raises(ValueError, match=r"train_x.npy must be a valid .npy file, got an .npz"):
        load(ArrayData(str(tmp_path)))
    (tmp_path / "train_x.npy").unlink()
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "x.npy").rename(tmp_path / "train.npz")
    with pytest.raises(ValueError, match=r"train.npz must be a valid .npz file, got an .npy file"):
        load(ArrayData(str(tmp_path)))
    with zipfile.ZipFile(tmp_path / "train.npz", "w") as archive:
        archive.writestr("x", b"no array")
    with pytest.raises(ValueError, match=r"be a valid .npz file, got no array in 'x'"):
        load(ArrayData(str(tmp_path)))


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 4), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 4), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999, 4), }",
        b"{'descr': '<U99999999999', 'fortran_order': False, 'shape': (3, 4), }",
        b"{'descr': '<f4\n', 'fortran_order': False, 'shape': (3, 4), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (3, 4), }",
        b"{'descr': '<f4', 'fortran_order': 1, 'shape': (3, 4), }",
        b"{'descr': [[('a', '<f4')]], 'fortran_order': False, 'shape': (3, 4), }",
        b"(" * 5_000,
        b"{'descr': '<f4'",
        b"\xff\xfe\x00",
        b"",
    ],
)
def test_invalid_npy_headers_are_rejected_in_one_line(tmp_path, header):
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + X.tobytes()
    (tmp_path / "train_x.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "test.npz", "w") as archive:
        archive.writestr("x.npy", content)
    for split, name in (("train", "train_x.npy"), ("test", "test.npz")):
        with pytest.raises(ValueError, match=f"{name} must be a valid .np. file, got") as error:
            load(ArrayData(str(tmp_path)), split)
        assert "\n" not in str(error.value)


def mutate(generator, content):
    """Return the content after one or two mutations, mostly in the header."""
    content = bytearray(content)
    for _ in range(generator.integers(1, 3)):
        offset = int(generator.integers(max(1, min(len(content), generator.choice([128, 10_000])))))
        mutation = generator.integers(5)
        if mutation == 0:
            content[offset : offset + 1] = bytes([generator.integers(256)])
        elif mutation == 1:
            content[offset : offset + 1] = b"9"
        elif mutation == 2:
            del content[offset : offset + generator.integers(1, 9)]
        elif mutation == 3:
            content[offset:offset] = generator.bytes(generator.integers(1, 9))
        else:
            del content[offset:]
    return bytes(content)


def test_mutated_files_are_read_or_rejected_by_name(tmp_path):
    generator, files = np.random.default_rng(0), {}
    for name, array in (("train_x.npy", X), ("train_labels.npy", LABELS)):
        np.save(tmp_path / name, array)
        files[name] = (tmp_path / name).read_bytes()
    errors = []
    for _ in range(400):
        chosen = generator.choice(list(files))
        for name, content in files.items():
            (tmp_path / name).write_bytes(mutate(generator, content) if name == chosen else content)
        try:
            load(ArrayData(str(tmp_path))).examples()
        except ValueError as error:
            errors.append(str(error))
    assert 200 < len(errors) < 400
    for message in errors:
        assert re.fullmatch(rf"file {tmp_path}/train_(x|labels)\.npy.* must .*, got .*", message)


def test_unused_arrays_are_rejected_or_reported(tmp_path, recorder):
    np.savez(tmp_path / "train.npz", x=X, label=LABELS)
    with pytest.raises(ValueError, match=r"train.npz: the array must be one of x, labels, text, "):
        load(ArrayData(str(tmp_path)))
    with pytest.raises(ValueError, match=r"got 'label' \(did you mean 'labels'\?\)"):
        load(ArrayData(str(tmp_path)))
    np.savez(tmp_path / "train.npz", x=X)
    with pytest.raises(ValueError, match=r"hold labels of train, because data.num_classes is 3"):
        load(ArrayData(str(tmp_path), num_classes=3))
    np.savez(tmp_path / "val.npz", x=X)
    load(ArrayData(str(tmp_path)), progress=recorder)
    assert recorder.lines == [f"warning: ignored 1 array files in {tmp_path}, the first is val.npz"]
    np.save(tmp_path / "train_labels.npy", LABELS)
    with pytest.raises(ValueError, match=r"train_x.npy with the other .npy files, got \['train_la"):
        load(ArrayData(str(tmp_path)))
    np.save(tmp_path / "train_x.npy", X)
    with pytest.raises(ValueError, match=r"hold train.npz or train_x.npy, not both, got both"):
        load(ArrayData(str(tmp_path)))
    (tmp_path / "train.npz").unlink()
    np.save(tmp_path / "train_other.npy", LABELS)
    with pytest.raises(ValueError, match=r"array of train_\*.npy must be one of .*, got 'other'"):
        load(ArrayData(str(tmp_path)))
    text = {"text": np.zeros((3, 5, 8)), "pooled": np.zeros((3, 6))}
    np.savez(tmp_path / "test.npz", x=X, labels=LABELS, **text)
    with pytest.raises(ValueError, match="hold labels or text, not both, got both"):
        load(ArrayData(str(tmp_path)), "test")
    np.savez(tmp_path / "test.npz", x=X, pooled=text["pooled"])
    with pytest.raises(ValueError, match="must hold both text and pooled"):
        load(ArrayData(str(tmp_path)), "test")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_non_finite_values_are_reported_with_file_and_index(tmp_path, bad):
    x = X.astype(np.float64)
    x[1, 2] = bad
    np.savez(tmp_path / "train.npz", x=x)
    np.save(tmp_path / "test_x.npy", x)
    shown = "inf" if bad == 1e300 else str(bad)
    message = rf"train.npz: x must hold finite numbers, got {shown} in example 1$"
    with pytest.raises(ValueError, match=message):
        load(ArrayData(str(tmp_path))).points()
    if bad != 1e300:  # 1e300 is finite in float64.
        with pytest.raises(ValueError, match=message):
            load(ArrayData(str(tmp_path)))
    test = load(ArrayData(str(tmp_path)), "test")
    np.testing.assert_array_equal(test.points(np.array([2, 0])), X[[2, 0]])
    with pytest.raises(ValueError, match=rf"test_x.npy: x must hold .*, got {shown} in example 1$"):
        test.points(np.array([2, 1]))
    text = {"text": np.zeros((3, 5, 8)), "pooled": np.full((3, 6), bad, np.float64)}
    np.savez(tmp_path / "train.npz", x=X, **text)
    with pytest.raises(
        ValueError, match=rf"train.npz: pooled must hold .*, got {shown} in example 0"
    ):
        load(ArrayData(str(tmp_path))).examples()


@pytest.mark.parametrize(
    ("low", "high", "shape", "warned"),
    [
        (0, 1, (2, 2, 1), True),
        (0, 255, (2, 2, 3), True),
        (-2.1, 2.6, (2, 2, 3), True),
        (-1, 1, (2, 2, 3), False),
        (-1, 1.05, (2, 2, 3), False),
        (0, 0, (2, 2, 3), False),
        (0, 1, (4,), False),
        (0, 1, (2, 2, 4), False),
    ],
)
@pytest.mark.parametrize("mapped", [True, False])
def test_float_images_of_unexpected_range_give_a_warning(
    tmp_path, low, high, shape, warned, mapped, recorder
):
    x = np.linspace(low, high, 700 * math.prod(shape), dtype=np.float32).reshape(700, *shape)
    name = "train_x.npy" if mapped else "train.npz"
    np.save(tmp_path / name, x) if mapped else np.savez(tmp_path / name, x=x)
    load(ArrayData(str(tmp_path)), progress=recorder)
    suffix = " in 512 of its examples" if mapped else ""
    expected = (
        f"warning: file {tmp_path / name}: x ranges from {low:.4g} to {high:.4g}{suffix}; images"
    )
    assert [expected == message[: len(expected)] for message in recorder.lines] == [True] * warned


def test_invalid_numbers_of_classes_are_rejected():
    with pytest.raises(ValueError, match=r"data.num_classes must lie in .*, got 1000000000000$"):
        ArrayData("x", num_classes=10**12)
    with pytest.raises(ValueError, match=r"data.num_classes must lie in \[1, 2147483646\], got 0"):
        ArrayData("x", num_classes=0)


def test_non_finite_values_in_small_mapped_arrays_are_reported_on_load(tmp_path):
    x = np.zeros((3, 2, 2, 1), np.float32)
    x[2, 1] = np.nan
    np.save(tmp_path / "train_x.npy", x)
    with pytest.raises(ValueError, match=r"train_x.npy: x must hold finite .* nan in example 2$"):
        load(ArrayData(str(tmp_path)))


def test_more_than_100000_classes_require_num_classes(tmp_path):
    np.savez(tmp_path / "train.npz", x=X, labels=np.array([0, 200_000, 1]))
    with pytest.raises(ValueError, match=r"train.npz: labels must be below 100000 unless data.num"):
        load(ArrayData(str(tmp_path)))
    assert load(ArrayData(str(tmp_path), num_classes=200_001)).num_classes == 200_001


def save_conditions(folder, **changed):
    """Write both splits with a dict condition, apart from changed arrays; None leaves one out."""
    generator = np.random.default_rng(0)
    for split, num in (("train", 12), ("test", 6)):
        arrays = {
            "x": generator.normal(size=(num, 3)),
            "cond_state": 5 + 2 * generator.normal(size=(num, 4)),
            "cond_camera": np.full((num, 2, 2, 1), 255, np.uint8),
            "cond_task": np.arange(num) % 3,
        } | changed
        np.savez(folder / f"{split}.npz", **{k: v for k, v in arrays.items() if v is not None})
    return ArrayData(str(folder))


@pytest.mark.parametrize("mapped", [False, True])
def test_condition_arrays_are_a_dict_of_float32_and_int32(tmp_path, mapped, recorder):
    data = save_conditions(tmp_path)
    if mapped:
        for split in ("train", "test"):
            with np.load(tmp_path / f"{split}.npz") as arrays:
                for name in arrays.files:
                    np.save(tmp_path / f"{split}_{name}.npy", arrays[name])
            (tmp_path / f"{split}.npz").unlink()
    train, test = data.load("train", progress=recorder), data.load("test")
    assert not recorder.lines
    specs = {"camera": Spec((2, 2, 1)), "state": Spec((4,)), "task": class_spec(3)}
    assert train.conditions == test.conditions == data.shape()[1] == specs
    batch = train.examples(np.array([4, 2]))
    assert {key: leaf.dtype for key, leaf in batch.cond.items()} == {
        "camera": np.float32,
        "state": np.float32,
        "task": np.int32,
    }
    np.testing.assert_array_equal(batch.cond["camera"], 1.0)
    np.testing.assert_array_equal(batch.cond["task"], [1, 2])
    np.testing.assert_allclose(batch.cond["state"], train.cond["state"][[4, 2]], rtol=1e-6)
    moments = fit_standardization(train).moments
    assert set(moments) == {"x", "cond_state", "cond_camera"}
    np.testing.assert_allclose(moments["cond_state"].mean, train.cond["state"].mean(axis=0))
    assert train.unconditional().conditions is None


def test_a_single_condition_array_is_the_condition(tmp_path):
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", x=np.zeros((4, 3)), cond=np.ones((4, 2)))
    train = ArrayData(str(tmp_path)).load("train")
    assert train.conditions == Spec((2,))
    np.testing.assert_array_equal(train.conds(slice(1, 3)), np.ones((2, 2), np.float32))


@pytest.mark.parametrize(
    ("changed", "settings", "message"),
    [
        ({"labels": np.zeros(12, int)}, {}, "must hold only one kind of condition"),
        ({"cond": np.zeros((12, 2))}, {}, "must hold only one kind of condition"),
        ({"cond_state": np.zeros((11, 4))}, {}, r"cond_state must be an array of 12 examples, got"),
        ({"cond_state": np.full((12, 4), np.nan)}, {}, "cond_state must hold finite numbers, got"),
        ({"cond_state": np.zeros(12, bool)}, {}, "cond_state must hold floats or integers, got b"),
        ({"cond_": np.zeros(12)}, {}, "the array must be one of"),
        ({}, {"cond_classes": (("task", 2),)}, r"cond_task must lie in \[0, 2\), got 0 to 2"),
        ({}, {"cond_classes": (("state", 2),)}, "must hold an integer array for each of data.cond"),
        ({}, {"num_classes": 3}, "must hold only one kind of condition"),
        (
            {"cond_state": None, "cond_camera": None, "cond_task": None, "cond": np.zeros(12, int)},
            {},
            "cond must hold floating-point numbers or images in uint8; store class labels",
        ),
    ],
)
def test_conditions_that_do_not_fit_are_refused(tmp_path, changed, settings, message):
    save_conditions(tmp_path)
    with np.load(tmp_path / "train.npz") as arrays:
        changed = dict(arrays) | changed
    arrays = {name: array for name, array in changed.items() if array is not None}
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        ArrayData(str(tmp_path), **settings).load("train")


def test_conditions_of_the_test_split_have_the_names_and_shapes_of_the_training_split(tmp_path):
    data = save_conditions(tmp_path)
    with np.load(tmp_path / "test.npz") as arrays:
        arrays = dict(arrays)
    np.savez(tmp_path / "test.npz", **arrays | {"cond_state": np.zeros((6, 5))})
    with pytest.raises(ValueError, match=r"cond_state must have shape \[num, 4\], got \(6, 5\)"):
        data.load("test")
    del arrays["cond_state"]
    np.savez(tmp_path / "test.npz", **arrays)
    with pytest.raises(ValueError, match="must hold the same arrays in both splits, got"):
        data.load("test")
