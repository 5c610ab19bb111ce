"""Tests of image folders: classes, flat folders, captions, splits and unreadable images."""

import hashlib
import os
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from fmjax._progress import Silent
from fmjax._specs import class_spec, token_spec
from fmjax.data import DataSource, ImageFolder, NoSuchSplit, TokenizerConfig, batches, load
from fmjax.data.sources import unreadable_images

COLORS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
GRAY = {"blue": 29, "green": 150, "red": 76}  # ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B.


def write_classes(folder, num, size=(12, 8), suffix=".png"):
    """Write `num` images of one color into each of the folders blue, green and red."""
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(num):
            Image.new("RGB", size, color).save(folder / name / f"{number}{suffix}")


def image_folder(folder, **settings):
    return ImageFolder(str(folder), size=4, **settings)


def names_of(dataset, folder):
    return [file.relative_to(folder).as_posix() for file in dataset.x.files]


def test_sub_folders_are_classes_with_their_names(tmp_path):
    write_classes(tmp_path, 20)
    data = image_folder(tmp_path, test_every=5)
    train, test = (load(data, split) for split in ("train", "test"))
    assert isinstance(data, DataSource)
    assert data.shape() == (train.event_shape, train.conditions) == ((4, 4, 3), class_spec(3))
    assert len(train) + len(test) == 60
    assert 0 < len(test) < 30
    for dataset in (train, test):
        assert dataset.class_names == ("blue", "green", "red")
        batch = dataset.examples(np.arange(len(dataset)))
        for pixels, label, name in zip(
            batch.x1, batch.cond, names_of(dataset, tmp_path), strict=True
        ):
            color = dataset.class_names[label]
            assert name.startswith(f"{color}/")
            expected = np.asarray(COLORS[color]) / 127.5 - 1
            np.testing.assert_allclose(pixels, np.broadcast_to(expected, (4, 4, 3)), atol=1e-6)


def test_test_images_are_chosen_by_a_hash_of_the_name_in_the_folder(tmp_path):
    write_classes(tmp_path, 60)
    test = names_of(load(image_folder(tmp_path), "test"), tmp_path)
    all_names = [f"{name}/{number}.png" for name in COLORS for number in range(60)]
    hashes = {name: hashlib.sha256(name.encode()).digest()[:8] for name in all_names}
    expected = [name for name in all_names if int.from_bytes(hashes[name], "big") % 20 == 0]
    assert test == sorted(expected)
    assert 3 <= len(test) <= 18  # 5 % of 180 is 9, with a standard deviation of 3.
    assert not set(test) & set(names_of(load(image_folder(tmp_path)), tmp_path))


def test_images_of_any_size_and_mode_become_colors_or_gray_values(tmp_path):
    color = COLORS["red"]
    for number, mode in enumerate(("1", "L", "P", "RGB", "CMYK", "RGBA", "LA", "I;16")):
        image = Image.new("RGB", (5 + number, 12 - number), color)
        image = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
        image.save(tmp_path / f"{number}.{'jpg' if mode == 'CMYK' else 'png'}")
    train = load(image_folder(tmp_path, test_every=10**6))
    assert train.conditions is None
    assert train.points().shape == (8, 4, 4, 3)
    write_classes(tmp_path / "gray", 1)
    gray = load(image_folder(tmp_path / "gray", channels=1, test_every=10**6))
    assert image_folder(tmp_path / "gray", channels=1).shape() == ((4, 4, 1), class_spec(3))
    expected = [np.full((4, 4, 1), GRAY[name]) for name in gray.class_names]
    np.testing.assert_array_equal(gray.x[:], expected)


def test_captions_are_read_as_for_captioned_images(tmp_path):
    write_classes(tmp_path, 2)
    for file in tmp_path.rglob("*.png"):
        file.with_suffix(".txt").write_text(f"a {file.parent.name} picture")
    words = TokenizerConfig(4, 16)
    data = image_folder(tmp_path, captions=True, tokenizer=words, channels=1, test_every=10**6)
    train = load(data)
    assert data.shape() == (train.event_shape, train.conditions) == ((4, 4, 1), token_spec(4, 16))
    assert train.captions.texts == [f"a {name} picture" for name in COLORS for _ in range(2)]
    np.testing.assert_array_equal(train.x[:][:, 0, 0, 0], [GRAY[n] for n in COLORS for _ in "12"])
    with pytest.raises(NoSuchSplit, match="data.folder must hold images of the test split, got"):
        load(data, "test")
    (tmp_path / "red" / "0.png").write_bytes(b"")
    assert load(data).captions.texts[-2:] == ["a green picture", "a red picture"]


def test_train_and_test_folders_are_the_splits(tmp_path, recorder):
    write_classes(tmp_path / "train", 2)
    write_classes(tmp_path / "test", 1)
    write_classes(tmp_path / "val", 1)
    train, test = (load(image_folder(tmp_path), split) for split in ("train", "test"))
    np.testing.assert_array_equal(train.labels, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(test.labels, [0, 1, 2])
    load(image_folder(tmp_path), progress=recorder)
    assert recorder.lines == [
        f"skipped in {tmp_path}: 3 images outside train and test, the first is val/blue/0.png"
    ]
    (tmp_path / "test" / "blue").rename(tmp_path / "test" / "navy")
    with pytest.raises(ValueError, match="hold the same class folders in train and test, got only"):
        load(image_folder(tmp_path))


def test_a_folder_train_next_to_other_classes_is_a_class(tmp_path):
    write_classes(tmp_path, 1)
    (tmp_path / "red").rename(tmp_path / "train")
    assert load(image_folder(tmp_path, test_every=10**6)).class_names == ("blue", "green", "train")


def test_images_in_folders_below_a_class_belong_to_it(tmp_path):
    write_classes(tmp_path, 1)
    (tmp_path / "red" / "more").mkdir()
    (tmp_path / "red" / "0.png").rename(tmp_path / "red" / "more" / "0.png")
    train = load(image_folder(tmp_path, test_every=10**6))
    assert names_of(train, tmp_path)[-1] == "red/more/0.png"
    np.testing.assert_array_equal(train.labels, [0, 1, 2])


def test_batches_of_an_image_folder_have_labels(tmp_path):
    write_classes(tmp_path, 3)
    iterator = batches(load(image_folder(tmp_path, test_every=10**6)), batch_size=9)
    batch = next(iterator)
    iterator.close()
    assert batch.x1.shape == (9, 4, 4, 3)
    np.testing.assert_array_equal(np.argmax(batch.x1[:, 0, 0], axis=-1), 2 - batch.cond)


def damage(folder, num):
    """Damage `num` images: an empty file, a text file, and files without their second half."""
    files = sorted(folder.rglob("*.*"))[:num]
    for number, file in enumerate(files):
        content = file.read_bytes()
        damaged = {0: b"", 1: b"no image"}.get(number, content[: len(content) // 2])
        file.write_bytes(damaged)
    return [file.relative_to(folder).as_posix() for file in files]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".webp", ".bmp", ".tif"])
def test_unreadable_images_are_skipped_and_named_once(tmp_path, recorder, suffix):
    write_classes(tmp_path, 8, suffix=suffix)
    damaged = damage(tmp_path, 4)
    train = load(image_folder(tmp_path, test_every=10**6), progress=recorder)
    assert len(train) == 20
    assert not set(damaged) & set(names_of(train, tmp_path))
    assert train.points().shape == (20, 4, 4, 3)
    (line,) = recorder.lines
    assert line.startswith(
        f"warning: skipped 4 of 24 images in {tmp_path}, which cannot be read: "
        f"blue/0{suffix} (an empty file), blue/1{suffix} (no image), blue/2{suffix} ("
    )
    assert line.endswith(") and 1 more")
    load(image_folder(tmp_path, test_every=10**6), progress=recorder)
    assert len(recorder.lines) == 1


def test_more_unreadable_images_than_the_limit_are_refused(tmp_path):
    write_classes(tmp_path, 20, suffix=".jpg")
    damage(tmp_path, 11)
    message = r"hold at most 10 unreadable images \(data.max_unreadable\), got 11 of 60: blue/0"
    with pytest.raises(ValueError, match=message):
        load(image_folder(tmp_path))
    assert len(load(image_folder(tmp_path, max_unreadable=11, test_every=10**6))) == 49
    with pytest.raises(ValueError, match="hold at most 3 unreadable"):
        load(image_folder(tmp_path, max_unreadable=3))


def test_a_repaired_image_is_read_again(tmp_path):
    write_classes(tmp_path, 2)
    content = (tmp_path / "red" / "1.png").read_bytes()
    (tmp_path / "red" / "1.png").write_bytes(content[: len(content) // 2])
    assert len(load(image_folder(tmp_path, test_every=10**6))) == 5
    (tmp_path / "red" / "1.png").write_bytes(content)
    assert len(load(image_folder(tmp_path, test_every=10**6))) == 6


def test_complete_images_with_bytes_after_their_end_are_read(tmp_path):
    write_classes(tmp_path, 1, suffix=".jpg")
    for name, more in (("blue", b"\0" * 9), ("red", b"made by a camera")):
        with (tmp_path / name / "0.jpg").open("ab") as stream:
            stream.write(more)
    assert len(load(image_folder(tmp_path, test_every=10**6))) == 3


def test_a_long_check_reports_its_progress(tmp_path, monkeypatch):
    class Counts(Silent):
        tasks, done = [], 0

        @contextmanager
        def task(self, description, total):
            self.tasks.append((description, total))
            yield self.advance

        def advance(self, n=1, note=None):
            self.done += n

    write_classes(tmp_path, 4)
    monkeypatch.setattr(unreadable_images, "_SECONDS_WITHOUT_TASK", -1.0)
    monkeypatch.setattr(unreadable_images, "_CHUNK", 5)
    counts = Counts()
    load(image_folder(tmp_path), progress=counts)
    assert (counts.tasks, counts.done) == ([("checking images", 12)], 12)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda f: None, {}, r"folder .* must hold images \(\.png \.jpg .*\), got none"),
        (lambda f: (f / "a").mkdir(), {}, r"folder .* must hold images \(\.png .*\), got none"),
        (
            lambda f: (write_classes(f, 1), (f / "dog").mkdir(), (f / "elk").mkdir()),
            {},
            "folder .* must hold images in every class folder, got none in dog, elk",
        ),
        (
            lambda f: (write_classes(f, 1), (f / "red" / "0.png").write_bytes(b"")),
            {},
            "must hold readable images in every class folder, got none in red",
        ),
        (
            lambda f: (write_classes(f, 1), (f / "red" / "0.png").rename(f / "0.png")),
            {},
            "hold either images or class folders with images, not both, got 1 images outside class "
            "folders, the first is 0.png",
        ),
        (
            lambda f: write_classes(f, 1),
            {"num_classes": 4},
            r"must hold 4 class folders \(data.num_classes\), got 3",
        ),
        (lambda f: f.rmdir(), {}, "data.folder must exist, got"),
        (lambda f: (f.rmdir(), f.touch()), {}, "data.folder must be a folder of images, got"),
        (lambda f: (f / "a.txt").touch(), {"captions": True}, "an image for every caption"),
        (lambda f: None, {"captions": True}, r"must hold images \(\.png .*\), got none"),
    ],
)
def test_folders_without_usable_images_are_refused(tmp_path, change, settings, message):
    folder = tmp_path / "images"
    folder.mkdir()
    change(folder)
    with pytest.raises(ValueError, match=message) as error:
        load(image_folder(folder, **settings))
    assert "\n" not in str(error.value)


def test_class_folders_that_are_not_utf8_are_refused(tmp_path):
    write_classes(tmp_path, 1)
    os.rename(tmp_path / "red", os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(ValueError, match=r"class folder of .* must be text in UTF-8, got"):
        load(image_folder(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 4}, "data.channels must be 1 or 3, got 4"),
        ({"size": 0}, r"data.size must lie in \[1, 16384\], got 0"),
        ({"test_every": 1}, "data.test_every must be at least 2, got 1"),
        ({"max_unreadable": -1}, "data.max_unreadable must be at least 0, got -1"),
        ({"num_classes": 0}, r"data.num_classes must lie in \[1, "),
        (
            {"num_classes": 2, "captions": True},
            "data.num_classes must be left out if the images have captions, got 2",
        ),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder("images", **settings)


def test_the_shape_is_known_without_the_folder_if_the_classes_are_counted(tmp_path):
    data = ImageFolder(str(tmp_path / "none"), size=8, num_classes=5)
    assert data.shape() == ((8, 8, 3), class_spec(5))
    with pytest.raises(ValueError, match="data.folder must exist, got"):
        ImageFolder(str(tmp_path / "none")).shape()
