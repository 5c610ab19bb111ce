"""Tests of captioned data: image folders, class names and emoji."""

import json
import os
import re
import unicodedata

import numpy as np
import pytest
from PIL import Image

from fmjax._specs import token_spec
from fmjax.data import (
    CaptionedClasses,
    CaptionedImages,
    DataSource,
    EmojiData,
    IdxData,
    NoSuchSplit,
    batches,
    load,
)
from fmjax.data.sources.captioned_classes import FASHION_NAMES
from fmjax.data.sources.emoji import Emoji
from fmjax.data.tokenizer import TokenizerConfig
from tests.data.sources.test_mnist import write_idx_files

WORDS = TokenizerConfig(4, 16)
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def write_images(folder, num, captions=True, size=(12, 8)):
    """Write images 0.png, 1.png, .. of one color each, with optional captions in .txt files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num):
        name = list(COLORS)[number % 3]
        Image.new("RGB", size, COLORS[name]).save(folder / f"{number}.png")
        if captions:
            (folder / f"{number}.txt").write_text(f"a {name} picture\n")


def write_metadata(folder, entries, name="metadata.jsonl"):
    (folder / name).write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def captioned_images(folder, **settings):
    return CaptionedImages(str(folder), size=4, tokenizer=WORDS, **settings)


def test_images_are_paired_with_their_txt_captions(tmp_path):
    write_images(tmp_path, 60)
    train, test = (
        load(captioned_images(tmp_path, test_every=5), split) for split in ("train", "test")
    )
    assert len(train) + len(test) == 60
    assert 0 < len(test) < 30
    assert isinstance(captioned_images(tmp_path), DataSource)
    assert captioned_images(tmp_path).shape() == (train.event_shape, train.conditions)
    assert train.conditions == token_spec(4, 16)
    for dataset in (train, test):
        batch = dataset.examples(np.arange(len(dataset)))
        words = train.captions.tokenizer.decode(batch.cond)
        for pixels, caption in zip(batch.x1, words, strict=True):
            color = np.asarray(COLORS[caption.removesuffix(" picture")]) / 127.5 - 1
            np.testing.assert_allclose(pixels, np.broadcast_to(color, (4, 4, 3)), atol=1e-6)


def test_the_split_depends_only_on_the_image_name(tmp_path):
    write_images(tmp_path / "few", 30)
    write_images(tmp_path / "many", 60)
    few, many = (
        load(captioned_images(tmp_path / name, test_every=4), "test") for name in ("few", "many")
    )
    assert len(many) > len(few) > 0
    assert set(few.captions.texts) <= set(many.captions.texts)


def test_train_and_test_folders_are_the_splits(tmp_path):
    write_images(tmp_path / "train", 3)
    with pytest.raises(ValueError, match=r"data.folder must hold images of the test split, got"):
        load(captioned_images(tmp_path), "test")
    write_images(tmp_path / "test", 2)
    assert [len(load(captioned_images(tmp_path), split)) for split in ("train", "test")] == [3, 2]
    assert load(captioned_images(tmp_path), "test").points().shape == (2, 4, 4, 3)


@pytest.mark.parametrize(("name", "key"), [("metadata", "text"), ("captions", "caption")])
def test_jsonl_metadata_lists_images_in_subfolders(tmp_path, name, key):
    write_images(tmp_path / "train" / "below", 2, captions=False)
    entries = [{"file_name": f"below/{n}.png", key: f"number {n}", "more": 1} for n in (1, 0)]
    write_metadata(tmp_path / "train", entries, f"{name}.jsonl")
    dataset = load(captioned_images(tmp_path))
    assert dataset.captions.texts == ["number 0", "number 1"]
    np.testing.assert_allclose(dataset.points()[:, 0, 0], [[1, -1, -1], [-1, 1, -1]])


def test_images_are_center_cropped_on_white(tmp_path):
    write_images(tmp_path / "train", 0)
    wide = np.zeros((2, 6, 4), np.uint8)
    wide[:, 2:4] = (10, 20, 30, 255)
    Image.fromarray(wide).save(tmp_path / "train" / "a.png")
    (tmp_path / "train" / "a.txt").write_text("a")
    Image.new("LA", (5, 9)).save(tmp_path / "train" / "b.PNG")
    (tmp_path / "train" / "b.txt").write_text("b")
    pixels = CaptionedImages(str(tmp_path), size=2).load("train").x[:]
    np.testing.assert_array_equal(pixels[0], np.broadcast_to([10, 20, 30], (2, 2, 3)))
    np.testing.assert_array_equal(pixels[1], 255)


def test_batches_of_an_image_folder_are_decoded(tmp_path):
    write_images(tmp_path / "train", 5)
    iterator = batches(load(captioned_images(tmp_path)), batch_size=4)
    batch = next(iterator)
    assert batch.x1.shape == (4, 4, 4, 3)
    assert batch.cond.shape == (4, 4)
    iterator.close()


def test_a_damaged_image_is_reported_by_name(tmp_path):
    write_images(tmp_path / "train", 4)
    content = (tmp_path / "train" / "2.png").read_bytes()
    (tmp_path / "train" / "2.png").write_bytes(content[: len(content) // 2])
    iterator = batches(load(captioned_images(tmp_path)), batch_size=4)
    with pytest.raises(ValueError, match=r"image .*2\.png must be a valid image file, got"):
        next(iterator)
    iterator.close()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["no json"], "line 1, must hold an object, got 'no json'"),
        ([{"file_name": "0.png"}], r"line 1, must be \{\"file_name\""),
        ([{"file_name": "0.png", "text": 3}], "line 1, must hold a string at text, got 3"),
        ([{"file_name": "../x.png", "text": "x"}], "name a file within the folder, got '../x.png'"),
        ([{"file_name": "/x.png", "text": "x"}], "name a file within the folder, got '/x.png'"),
        ([{"file_name": "0.png", "text": "x"}] * 2, "line 2, must name a file once, got '0.png'"),
        ([], "must have a caption for every image, got none for 0.png"),
        ([{"file_name": "0.png", "text": " "}], "must have words in every caption, got none for 0"),
        (
            [{"file_name": name, "text": "x"} for name in ("0.png", "1.png", "2.png")],
            r"must have an image for every caption, got none for 1.png and 1 more",
        ),
    ],
)
def test_metadata_inconsistent_with_the_images_is_rejected(tmp_path, entries, message):
    write_images(tmp_path / "train", 1, captions=False)
    write_metadata(tmp_path / "train", entries)
    with pytest.raises(ValueError, match=message):
        load(captioned_images(tmp_path))


def test_hidden_files_and_byte_order_marks_are_ignored(tmp_path):
    write_images(tmp_path / "train", 2)
    hidden = tmp_path / "train" / ".ipynb_checkpoints"
    hidden.mkdir()
    for file in (hidden / "0-checkpoint.txt", tmp_path / "train" / "._0.txt"):
        file.write_text("x")
    (tmp_path / "train" / "1.txt").write_text("\ufeffa cat", encoding="utf-8")
    assert load(captioned_images(tmp_path)).captions.texts == ["a red picture", "a cat"]


def test_images_outside_the_split_folders_are_skipped_and_reported(tmp_path, recorder):
    write_images(tmp_path / "train", 2)
    write_images(tmp_path / "val", 3)
    assert len(load(captioned_images(tmp_path), progress=recorder)) == 2
    assert "skipped 3 images outside them, the first is val/0.png" in recorder.lines[0]


def test_16_bit_images_are_rescaled_and_32_bit_images_rejected(tmp_path):
    (tmp_path / "train").mkdir()
    levels = np.array([[0, 30_000], [45_000, 65_535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "train" / "0.png")
    (tmp_path / "train" / "0.txt").write_text("grey")
    data = CaptionedImages(str(tmp_path), size=2, tokenizer=WORDS)
    np.testing.assert_array_equal(load(data).x[:][0, :, :, 0], levels // 257)
    Image.fromarray(levels.astype(np.float32)).save(tmp_path / "train" / "0.tiff")
    (tmp_path / "train" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"0\.tiff must be a valid image file, got 32-bit pixels"):
        load(data).x[:]


def test_symbolic_links_to_images_folders_and_metadata_are_followed(tmp_path):
    """Each file in a snapshot of the Hugging Face hub is a link to a file outside the folder."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    (snapshot / "train").mkdir(parents=True)
    write_images(blobs, 3, captions=False)
    for number in range(3):
        (snapshot / "train" / f"{number}.png").symlink_to(f"../../../blobs/{number}.png")
    write_metadata(
        blobs, [{"file_name": f"{n}.png", "text": f"number {n}"} for n in range(3)], "abc"
    )
    (snapshot / "train" / "metadata.jsonl").symlink_to("../../../blobs/abc")
    assert load(captioned_images(snapshot)).captions.texts == ["number 0", "number 1", "number 2"]
    write_images(tmp_path / "elsewhere" / "cats", 2)
    (tmp_path / "mine" / "train").mkdir(parents=True)
    (tmp_path / "mine" / "train" / "below").symlink_to(tmp_path / "elsewhere")
    dataset = load(captioned_images(tmp_path / "mine"))
    assert [file.name for file in dataset.x.files] == ["0.png", "1.png"]
    assert dataset.captions.texts == ["a red picture", "a green picture"]
    (tmp_path / "linked").symlink_to(tmp_path / "mine")
    assert len(load(captioned_images(tmp_path / "linked"))) == 2


def test_skipped_links_and_files_are_counted_in_one_line(tmp_path, recorder):
    train = tmp_path / "train"
    write_images(train / "a", 2)
    write_images(train / "b", 1)
    links = {"a/loop": "..", "b/other": "../a", "a/more": "../b", "c": "none", "d": "d"}
    for link, target in links.items():
        (train / link).symlink_to(target)
    for name in ("x.heic", "y.HEIC", "z", "a/.hidden", "a/0.caption"):
        (train / name).write_text("x")
    dataset = load(captioned_images(tmp_path), progress=recorder)
    names = [file.relative_to(train).as_posix() for file in dataset.x.files]
    expected = ["a/0.png", "a/1.png", "a/more/0.png", "b/0.png", "b/other/0.png", "b/other/1.png"]
    assert names == expected
    assert recorder.lines == [
        f"skipped in {tmp_path}: 4 links to a parent folder, 2 .caption files, 2 .heic files, "
        "2 broken links, 1 files without a suffix, the first is train/a/0.caption"
    ]


@pytest.mark.parametrize(("disk", "listed"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_file_names_match_in_both_unicode_forms(tmp_path, disk, listed):
    train, name = tmp_path / "train", "école/が한.png"
    write_images(tmp_path, 1, captions=False)
    on_disk = train / unicodedata.normalize(disk, name)
    on_disk.parent.mkdir(parents=True)
    (tmp_path / "0.png").rename(on_disk)
    entry = {"file_name": unicodedata.normalize(listed, name), "text": "a school"}
    write_metadata(train, [entry])
    assert load(captioned_images(tmp_path)).captions.texts == ["a school"]
    write_metadata(train, [entry, {**entry, "file_name": on_disk.relative_to(train).as_posix()}])
    with pytest.raises(ValueError, match="line 2, must name a file once, got"):
        load(captioned_images(tmp_path))
    (train / "metadata.jsonl").unlink()
    (train / f"{unicodedata.normalize(listed, 'école/が한')}.txt").parent.mkdir(exist_ok=True)
    caption_file = on_disk.with_name(unicodedata.normalize(listed, "が한.txt"))
    caption_file.write_text("a school again")
    assert load(captioned_images(tmp_path)).captions.texts == ["a school again"]


def test_file_names_that_are_not_utf8_are_read_and_reported(tmp_path, recorder):
    train = os.fsencode(tmp_path / "train")
    write_images(tmp_path / "train", 1)
    for suffix in (b".png", b".txt"):
        os.rename(train + b"/0" + suffix, train + b"/caf\xe9" + suffix)
    assert load(captioned_images(tmp_path)).captions.texts == ["a red picture"]
    assert load(captioned_images(tmp_path)).points().shape == (1, 4, 4, 3)
    os.rename(train + b"/caf\xe9.txt", train + b"/caf\xe8.heic")
    with pytest.raises(ValueError, match="have a caption for every image, got none for caf\udce9"):
        load(captioned_images(tmp_path))
    load_split = captioned_images(tmp_path / "train", test_every=2).splits
    (tmp_path / "train" / "caf\udce9.txt").write_text("a picture")
    assert sum(map(len, load_split(tmp_path / "train", recorder).values())) == 1
    assert "the first is caf\udce8.heic" in recorder.lines[0]


@pytest.mark.parametrize(
    "content",
    [
        'file_name,text\n0.png,"a red, round picture"\nbelow/1.png,"say ""hi"""\n',
        '\ufefffile_name,text\r\n0.png,"a red, round picture"\r\nbelow/1.png,"say ""hi"""\r\n',
        'Caption;File_name;more\na red, round picture;0.png;\n"say ""hi""";below/1.png;x\n\n',
        'text\tfile_name\na red, round picture\t./0.png\n"say ""hi"""\tbelow\\1.png',
    ],
)
def test_csv_metadata_lists_captions(tmp_path, content):
    write_images(tmp_path / "train", 2, captions=False)
    (tmp_path / "train" / "below").mkdir()
    (tmp_path / "train" / "1.png").rename(tmp_path / "train" / "below" / "1.png")
    (tmp_path / "train" / "metadata.csv").write_bytes(content.encode())
    assert load(captioned_images(tmp_path)).captions.texts == ["a red, round picture", 'say "hi"']


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"metadata.csv must have columns file_name and text, got \[\]"),
        ("image,text\n0.png,x\n", r"must have columns file_name and text, got \['image', 'text'\]"),
        (
            "file_name,text\n0.png,a red, round one\n",
            "line 2, must have 2 values, with quotes .* 3",
        ),
        ("file_name,text\n0.png\n", "line 2, must have 2 values, with quotes .*, got 1"),
        ('file_name,text\n0.png,"a red one\n', r"line 2, must be a line of a .csv file, got unexp"),
        ("file_name,text\n../0.png,x\n", "line 2, must name a file within the folder, got '../0.p"),
        ("file_name,text\n0.png,x\n0.png,y\n", "line 3, must name a file once, got '0.png'"),
        ("file_name,text\n0.png,\n", "must have words in every caption, got none for 0.png"),
        (
            "file_name,text\n1.png,x\n",
            r"have a caption for every image, got none for 0.png \(a caption, but no image, for 1",
        ),
    ],
)
def test_invalid_csv_metadata_is_rejected(tmp_path, content, message):
    write_images(tmp_path / "train", 1, captions=False)
    (tmp_path / "train" / "metadata.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        load(captioned_images(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["..", "../0.png", "a/../0.png", "a\\..\\0.png", "/0.png", "C:\\0.png", "\\0.png", "", "/"],
)
def test_file_names_outside_the_folder_are_rejected(tmp_path, name):
    write_images(tmp_path / "train", 1, captions=False)
    write_metadata(tmp_path / "train", [{"file_name": name, "text": "x"}])
    message = re.escape(f"line 1, must name a file within the folder, got {name!r}")
    with pytest.raises(ValueError, match=message):
        load(captioned_images(tmp_path))


def test_metadata_in_folders_at_any_level_is_read(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / split / "deep" / "er", 2, captions=False)
    below = [{"file_name": f"er/{n}.png", "text": f"below {n}"} for n in range(2)]
    write_metadata(tmp_path / "train" / "deep", below)
    above = [{"file_name": f"test/deep/er/{n}.png", "text": f"above {n}"} for n in range(2)]
    write_metadata(tmp_path, above)
    texts = {
        split: load(captioned_images(tmp_path), split).captions.texts for split in ("train", "test")
    }
    assert texts == {"train": ["below 0", "below 1"], "test": ["above 0", "above 1"]}
    duplicate = [{"file_name": "train/deep/er/0.png", "text": "twice"}]
    write_metadata(tmp_path, above + duplicate)
    with pytest.raises(ValueError, match="must name a file once, got "):
        load(captioned_images(tmp_path))
    write_metadata(tmp_path, [*above, {"file_name": "val/0.png", "text": "elsewhere"}])
    with pytest.raises(ValueError, match="have an image for every caption, got none for val/0.png"):
        load(captioned_images(tmp_path))
    write_images(tmp_path / "val", 1)
    assert len(load(captioned_images(tmp_path))) == 2


def test_captions_prefer_metadata_then_txt_then_caption_files(tmp_path, recorder):
    train = tmp_path / "train"
    write_images(train, 3, captions=False)
    write_metadata(train, [{"file_name": "0.png", "text": "of the list"}])
    for name in ("0.txt", "1.txt", "stray.txt"):
        (train / name).write_text(f"of {name}")
    for name in ("0.caption", "1.caption", "2.CAPTION"):
        (train / name).write_text(f"of {name}")
    dataset = load(captioned_images(tmp_path), progress=recorder)
    assert dataset.captions.texts == ["of the list", "of 1.txt", "of 2.CAPTION"]
    message = f"skipped in {tmp_path}: 2 .caption files, 2 .txt files, the first is train/0.caption"
    assert recorder.lines == [message]


@pytest.mark.parametrize(
    "name", ["captions.tsv", "labels.json", "metadata.parquet", "all.txt", "captions.txt"]
)
def test_unread_files_that_may_hold_captions_are_reported(tmp_path, name):
    write_images(tmp_path / "train", 1, captions=False)
    (tmp_path / "train" / name).write_text("x")
    if name == "all.txt":
        write_metadata(tmp_path / "train", [])
    message = rf"caption for every image, got none for 0.png \(not read: {name}\)"
    with pytest.raises(ValueError, match=message):
        load(captioned_images(tmp_path))


def test_unread_metadata_in_the_parent_folder_is_reported(tmp_path):
    write_images(tmp_path / "images", 1, captions=False)
    write_metadata(tmp_path, [{"file_name": "images/0.png", "text": "x"}])
    with pytest.raises(ValueError, match=r"got none for 0.png \(not read: ../metadata.jsonl\)"):
        load(captioned_images(tmp_path / "images"))
    assert load(captioned_images(tmp_path)).captions.texts == ["x"]


def test_metadata_written_on_windows_is_read(tmp_path):
    write_images(tmp_path / "train", 2, captions=False)
    (tmp_path / "train" / "1.png").rename(tmp_path / "train" / "1.PNG")
    lines = ['{"file_name": "0.png", "text": "a"}', "", '{"file_name": "1.PNG", "caption": "b"}']
    content = "\r\n".join(lines).encode("utf-8-sig")
    (tmp_path / "train" / "Metadata.JSONL").write_bytes(content)
    assert load(captioned_images(tmp_path)).captions.texts == ["a", "b"]


def test_unpaired_captions_and_images_are_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"data.folder must exist, got"):
        load(captioned_images(tmp_path / "nowhere"))
    write_images(tmp_path / "train", 2)
    (tmp_path / "train" / "0.txt").unlink()
    with pytest.raises(ValueError, match="have a caption for every image, got none for 0.png"):
        load(captioned_images(tmp_path))
    write_images(tmp_path / "train", 2)
    (tmp_path / "train" / "1.png").unlink()
    with pytest.raises(ValueError, match="have an image for every caption, got none for 1.txt"):
        load(captioned_images(tmp_path))
    write_metadata(tmp_path / "train", [])
    write_metadata(tmp_path / "train", [], "captions.jsonl")
    with pytest.raises(ValueError, match="hold one of metadata.jsonl and captions.jsonl, got both"):
        load(captioned_images(tmp_path))
    write_images(tmp_path / "latin", 1)
    (tmp_path / "latin" / "0.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match="must be UTF-8 text"):
        load(captioned_images(tmp_path / "latin"))


def test_class_captions_use_all_wordings_and_keep_labels(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (300, 28, 28)).astype(np.uint8)
    write_idx_files(tmp_path, pixels, (np.arange(300) % 10).astype(np.uint8))
    data = CaptionedClasses(IdxData("fashion_mnist", folder=str(tmp_path)))
    for split in ("test", "train"):
        dataset = load(data, split)
        assert (dataset.event_shape, dataset.conditions) == data.shape()
        for text, label in zip(dataset.captions.texts, dataset.labels, strict=True):
            assert text in data.wordings(int(label))
        np.testing.assert_array_equal(dataset.conds(), dataset.captions.tokens)
        assert dataset.captions.tokenizer.unknown(dataset.captions.texts) == ()
    assert len(set(dataset.captions.texts)) > 50
    all_wordings = [text for label in range(10) for text in data.wordings(label)]
    assert len(set(all_wordings)) == len(all_wordings) == 10 * 3 * 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CaptionedClasses(names=("a", "b")), "data.names must hold a name for each of 10"),
        (lambda: CaptionedClasses(templates=("a photo",)), "data.templates must be texts that"),
        (lambda: CaptionedClasses(seed=-1), r"data.seed must lie in \[0, 2\*\*63\), got -1"),
        (lambda: CaptionedImages("x", size=0), r"data.size must lie in \[1, 16384\], got 0"),
        (lambda: CaptionedImages("x", test_every=1), "data.test_every must be at least 2, got 1"),
        (lambda: EmojiData(size=0), r"data.size must lie in \[1, 16384\], got 0"),
        (lambda: EmojiData(groups=("Flag",)), r"data.groups must be .*did you mean 'Flags'"),
    ],
)
def test_invalid_settings_are_rejected(make, message):
    assert len(FASHION_NAMES) == 10
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("red heart", "red heart"),
        ("woman firefighter: dark skin tone", "woman firefighter with dark skin tone"),
        ("man: light skin tone, red hair", "man with light skin tone and red hair"),
        ("man: beard", "man with beard"),
        ("flag: Peru", "flag Peru"),
        ("keycap: 7", "keycap 7"),
        ("family: man, woman, boy", "family man and woman and boy"),
        (
            "kiss: woman, man, light skin tone, dark skin tone",
            "kiss woman and man with light and dark skin tone",
        ),
    ],
)
def test_emoji_names_become_natural_captions(name, caption):
    assert Emoji("", name, ()).caption == caption


def test_missing_emoji_files_are_rejected_with_the_package_names(tmp_path):
    with pytest.raises(ValueError, match="packages fonts-noto-color-emoji and unicode-data are"):
        load(EmojiData(folder=str(tmp_path)))
    (tmp_path / "emoji-test.txt").write_text("")
    (tmp_path / "NotoColorEmoji.ttf").write_text("no font")
    with pytest.raises(ValueError, match="must be a font of color bitmaps"):
        load(EmojiData(folder=str(tmp_path)))


@pytest.mark.slow
def test_emoji_have_images_and_test_captions_of_known_words():
    data = EmojiData(size=8, groups=("Smileys & Emotion", "People & Body"))
    try:
        train = load(data, "train")
    except ValueError as error:
        pytest.skip(str(error))
    test = load(data, "test")
    assert (train.event_shape, train.conditions) == data.shape()
    texts = train.captions.texts
    assert len(texts) == len(set(texts)) > 1_000
    red_heart = train.points(np.array([texts.index("red heart")]))[0]
    assert red_heart[4, 4, 0] > 0.5 > red_heart[4, 4, 1]
    np.testing.assert_allclose(red_heart[0, 0], 1.0, atol=0.02)
    assert 100 < len(test) < len(train) / 5
    with pytest.raises(NoSuchSplit, match="data.groups must hold emoji of the test split, got"):
        load(EmojiData(size=8, groups=("Flags",)), "test")
    assert not set(test.captions.texts) & set(texts)
    assert train.captions.tokenizer.unknown(test.captions.texts) == ()
    assert all("skin tone" in text for text in test.captions.texts)
