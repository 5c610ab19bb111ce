"""MNIST and Fashion-MNIST: 60,000 training and 10,000 test images of 28x28, ten classes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmjax._checks import require, require_numbers, require_one_of
from fmjax._files import cache_dir
from fmjax._progress import Progress, Silent
from fmjax.data.dataset import Dataset, Split
from fmjax.data.sources.download import DownloadError, download
from fmjax.data.sources.idx import read_idx

_STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class _Published:
    """Where a set of four .gz files is found, and the sha256 of each in the order of _STEMS."""

    installed: Path | None
    mirrors: tuple[str, ...]
    sha256: tuple[str, str, str, str]


# The checksums of Fashion-MNIST were computed from Debian's files, whose contents are the
# official ones: restoring the file name and time in their gzip headers gives the md5 sums that
# the authors publish. Those of MNIST are as torch-rb, guild and others have them.
_PUBLISHED: dict[str, _Published] = {
    "fashion_mnist": _Published(
        installed=Path("/usr/share/datasets/fashion-mnist"),
        mirrors=(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        sha256=(
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    "mnist": _Published(
        installed=None,
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        sha256=(
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
}


@dataclass(frozen=True)
class IdxData:
    """Grey images from IDX files, ten classes, `[28, 28, 1]` uint8.

    The files are looked for in `folder` if one is given; else where Debian's package
    `dataset-fashion-mnist` puts them; else in fmjax's cache, into which they are downloaded
    once. The test split is the published test set.

    Attributes:
        name: "fashion_mnist" or "mnist".
        folder: With the four files under their published names, gzipped or not.
        classes: Only examples of these, which keep their labels; empty for all.

    Source: H. Xiao et al. 2017, arXiv:1708.07747; Y. LeCun et al. 1998, The MNIST database.
    """

    name: str = "fashion_mnist"
    folder: str | None = None
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_numbers(self, "data.")
        require_one_of("data.name", self.name, _PUBLISHED)
        known = all(0 <= label < 10 for label in self.classes)
        require(known, "data.classes", "be labels from 0 to 9", self.classes)

    def shape(self) -> tuple[tuple[int, ...], int | None]:
        """The shape of one example and the number of classes, without reading any."""
        return (28, 28, 1), 10

    def load(self, split: Split, *, progress: Progress = Silent()) -> Dataset:
        """Read one split.

        Raises:
            ValueError: If files are missing and cannot be downloaded, or are damaged.
        """
        stems = _STEMS[:2] if split == "train" else _STEMS[2:]
        images_path, labels_path = (self._find(stem, progress) for stem in stems)
        images, labels = read_idx(images_path), read_idx(labels_path)
        right = images.ndim == 3 and images.size > 0
        require(right, f"file {images_path}", "hold images [n, height, width]", images.shape)
        matching = labels.shape == images.shape[:1]
        require(matching, f"file {labels_path}", f"hold {len(images)} labels", labels.shape)
        highest = int(np.max(labels))
        require(highest < 10, f"file {labels_path}", "hold labels 0 to 9", highest)
        if self.classes:
            chosen = np.isin(labels, self.classes)
            images, labels = images[chosen], labels[chosen]
        return Dataset(x=images[..., None], labels=labels, num_classes=10)

    def _find(self, stem: str, progress: Progress) -> Path:
        published = _PUBLISHED[self.name]
        if self.folder is not None:
            return _in_folder(Path(self.folder).expanduser(), stem)
        if published.installed is not None and (published.installed / f"{stem}.gz").is_file():
            return published.installed / f"{stem}.gz"
        path = cache_dir() / "datasets" / self.name / f"{stem}.gz"
        if not path.is_file():
            digest = published.sha256[_STEMS.index(stem)]
            mirrors = [f"{mirror}{stem}.gz" for mirror in published.mirrors]
            try:
                download(mirrors, path, sha256=digest, progress=progress)
            except DownloadError as error:
                raise ValueError(
                    f"data.folder must name a folder with {stem}.gz when it cannot be downloaded, "
                    f"got None ({error})"
                ) from error
        return path


def _in_folder(folder: Path, stem: str) -> Path:
    for path in (folder / f"{stem}.gz", folder / stem):
        if path.is_file():
            return path
    raise ValueError(
        f"data.folder must hold {stem}.gz (leave data.folder out to have it downloaded), "
        f"got {folder}"
    )
