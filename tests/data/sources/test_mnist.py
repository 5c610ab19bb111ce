"""Tests of IDX files: reading, downloading and rejecting damaged files."""

import gzip
import hashlib
import http.client
import io
import struct
import threading
import time
import urllib.error
from pathlib import Path

import numpy as np
import pytest

from fmjax._progress import Silent
from fmjax.data import IdxData, load
from fmjax.data.sources import mnist
from fmjax.data.sources.download import DownloadError, download
from fmjax.data.sources.idx import read_idx

IMAGES = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
LABELS = np.array([0, 1, 2, 3, 9, 0], dtype=np.uint8)


def idx_bytes(array, type_code=0x08):
    header = bytes([0, 0, type_code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_idx_files(folder: Path, images=IMAGES, labels=LABELS, *, compressed=True) -> Path:
    for stem, array in (
        ("train-images-idx3-ubyte", images),
        ("train-labels-idx1-ubyte", labels),
        ("t10k-images-idx3-ubyte", images[:2]),
        ("t10k-labels-idx1-ubyte", labels[:2]),
    ):
        if compressed:
            (folder / f"{stem}.gz").write_bytes(gzip.compress(idx_bytes(array), mtime=0))
        else:
            (folder / stem).write_bytes(idx_bytes(array))
    return folder


@pytest.mark.parametrize("compressed", [True, False])
def test_idx_files_are_read_back_as_written(tmp_path, compressed):
    data = IdxData("mnist", folder=str(write_idx_files(tmp_path, compressed=compressed)))
    train, test = load(data), load(data, "test")
    np.testing.assert_array_equal(train.x, IMAGES[..., None])
    np.testing.assert_array_equal(train.labels, LABELS)
    assert (train.num_classes, len(test)) == (10, 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.gz", b"not gzip", "a.gz must be a valid gzip file, got Not a gzipped file"),
        ("a.gz", gzip.compress(idx_bytes(IMAGES), mtime=0)[:-9], "a.gz must be a valid gzip file"),
        ("a", b"", "a must begin with an IDX magic number, got bytes none"),
        ("a", b"PNG.....", "a must begin with an IDX magic number, got bytes 504e472e"),
        ("a", idx_bytes(IMAGES, type_code=0x0D), r"a must hold unsigned bytes .*, got type 0x0d"),
        ("a", idx_bytes(IMAGES)[:9], "a must have a header of 16 bytes, got 9"),
        ("a", bytes([0, 0, 8, 100]) + bytes(400), "a must have at most 8 axes, got 100"),
        ("a", idx_bytes(IMAGES)[:-1], r"a must hold 72 values \(6, 4, 3\), got 71"),
        ("a", idx_bytes(IMAGES) + b"x", r"a must hold 72 values \(6, 4, 3\), got 73"),
    ],
)
def test_damaged_files_are_rejected_with_their_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / name)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[..., 0], LABELS, r"must hold images \[n, height, width\], got \(6, 4\)"),
        (IMAGES[:, :0], LABELS, r"must hold images \[n, height, width\], got \(6, 0, 3\)"),
        (IMAGES, LABELS[:5], r"train-labels-idx1-ubyte.gz must hold 6 labels, got \(5,\)"),
        (IMAGES, LABELS + 1, "must hold labels 0 to 9, got 10"),
    ],
)
def test_images_and_labels_must_match(tmp_path, images, labels, message):
    folder = write_idx_files(tmp_path, images, labels)
    with pytest.raises(ValueError, match=message):
        load(IdxData(folder=str(folder)))


def test_a_folder_without_the_files_is_rejected_with_advice(tmp_path):
    with pytest.raises(ValueError, match=r"data.folder must hold t10k-images.*omit data.folder"):
        load(IdxData(folder=str(tmp_path)), "test")


def test_an_unknown_name_is_rejected():
    with pytest.raises(ValueError, match=r"data.name must be one of .*did you mean 'mnist'"):
        IdxData(name="mnst")


class Mirror:
    """Replacement for `urlopen` that serves a dictionary of contents by URL."""

    def __init__(self, contents):
        self.contents, self.requested = contents, []

    def __call__(self, url, timeout):
        assert timeout > 0
        self.requested.append(url)
        if url not in self.contents:
            raise urllib.error.URLError("no such host")
        if self.contents[url] is None:
            raise http.client.IncompleteRead(b"half")
        response = io.BytesIO(self.contents[url])
        response.headers = {"Content-Length": str(len(self.contents[url]))}
        return response


class Recorder(Silent):
    """Progress that records the completed and total amounts of each task."""

    def __init__(self):
        self.done = {}

    def say(self, line):
        pass

    def task(self, description, total):
        recorder = self

        class Task:
            def __enter__(self):
                recorder.done[description] = (0, total)
                return self.advance

            def __exit__(self, *_):
                pass

            def advance(self, n=1, note=""):
                recorder.done[description] = (recorder.done[description][0] + n, total)

        return Task()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_downloads_use_the_first_mirror_with_the_published_digest(tmp_path):
    mirror, recorder = Mirror({"https://b/f": b"wrong", "https://c/f": b"right"}), Recorder()
    urls = ["https://a/f", "https://b/f", "https://c/f", "https://d/f"]
    file = tmp_path / "new" / "f"
    download(urls, file, sha256=sha256(b"right"), open_url=mirror, progress=recorder)
    assert file.read_bytes() == b"right"
    assert mirror.requested == urls[:3]
    assert recorder.done == {"downloading f": (5, 5)}


def test_concurrent_downloads_fetch_a_file_once(tmp_path):
    """The locks exclude two threads as they do two processes."""
    mirror, file = Mirror({"https://a/f": b"right"}), tmp_path / "f"

    def slow_mirror(url, **settings):
        time.sleep(0.2)
        return mirror(url, **settings)

    def fetch():
        download(["https://a/f"], file, sha256=sha256(b"right"), open_url=slow_mirror)

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mirror.requested == ["https://a/f"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_a_failed_download_leaves_no_file_and_lists_the_errors(tmp_path):
    mirror = Mirror({"https://b/f": b"wrong", "https://c/f": None})
    urls = ["https://a/f", "https://b/f", "https://c/f"]
    message = r"a/f: .*no such host.*b/f: sha256 [0-9a-f]+\.\.\. instead.*c/f: IncompleteRead"
    with pytest.raises(DownloadError, match=message):
        download(urls, tmp_path / "f", sha256=sha256(b"right"), open_url=mirror)
    assert list(tmp_path.iterdir()) == []


def test_mirrors_without_https_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="mirrors must be https URLs, got http://a/f"):
        download(["http://a/f"], tmp_path / "f", sha256="")


def test_missing_files_are_downloaded_once_into_the_cache(tmp_path, monkeypatch):
    contents = {}
    for file in write_idx_files(tmp_path).iterdir():
        contents[f"https://mirror/{file.name}"] = file.read_bytes()
    digests = tuple(sha256(contents[f"https://mirror/{stem}.gz"]) for stem in mnist._STEMS)
    published = mnist._Published(None, ("https://mirror/",), digests)
    mirror = Mirror(contents)
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(mnist._PUBLISHED, "mnist", published)
    monkeypatch.setattr(mnist, "download", lambda *a, **k: download(*a, **k, open_url=mirror))
    for _ in range(2):
        np.testing.assert_array_equal(load(IdxData("mnist")).labels, LABELS)
    assert len(mirror.requested) == 2


def test_a_failed_download_suggests_setting_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(mnist, "download", lambda *a, **k: download(*a, **k, open_url=Mirror({})))
    with pytest.raises(
        ValueError, match=r"data.folder must be a folder with train-images.*no such host"
    ):
        load(IdxData("mnist"))


def test_the_debian_package_has_the_published_sizes():
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    test = load(IdxData("fashion_mnist"), "test")
    assert test.x.shape == (10_000, 28, 28, 1)
    assert (np.bincount(test.labels) == 1000).all()


def test_only_selected_classes_are_read_and_keep_their_labels(tmp_path):
    folder = str(write_idx_files(tmp_path))
    selected = load(IdxData(folder=folder, classes=(0, 9)))
    assert selected.labels.tolist() == [0, 9, 0]
    assert selected.num_classes == 10
    np.testing.assert_array_equal(selected.x[..., 0], IMAGES[[0, 4, 5]])
    with pytest.raises(ValueError, match=r"data.classes must be labels from 0 to 9, got \(10,\)"):
        IdxData(classes=(10,))
