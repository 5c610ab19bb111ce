"""MNIST and Fashion-MNIST: 60,000 training and 10,000 test images of 28x28, ten classes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmjax._checks import require, require_numbers, require_one_of
from fmjax._files import cache_dir
from fmjax._progress import Progress, Silent
from fmjax._specs import CondSpec, class_spec
from fmjax.data.dataset import Dataset, Split
from fmjax.data.sources.download import DownloadError, download
from fmjax.data.sources.idx import read_idx

CLASS_NAMES = {
    "fashion_mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    "mnist": tuple("0123456789"),
}
"""Names of the ten classes of each data set, as published."""

_STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class _Published:
    """Locations of the four files of a data set, and their SHA-256 checksums in `_STEMS` order."""

    installed: Path | None
    mirrors: tuple[str, ...]
    sha256: tuple[str, str, str, str]


# The checksums of Fashion-MNIST were computed from Debian's files. Their contents are the official
# ones: restoring the file name and time in the gzip headers gives the published md5 sums. The
# checksums of MNIST agree with those in torch-rb, guild and other projects.
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
    """Grayscale images of MNIST or Fashion-MNIST, `[28, 28, 1]` uint8, ten classes.

    The files are read from `folder` if it is given, else from Debian's package
    `dataset-fashion-mnist` if it is installed, else from fmjax's cache, to which they are
    downloaded once. The test split is the published test set.

    Attributes:
        name: "fashion_mnist" or "mnist".
        folder: Folder with the four files under their published names, gzipped or not.
        classes: Class labels to keep; empty for all. Labels are not renumbered.

    Reference: H. Xiao et al. 2017, arXiv:1708.07747; Y. LeCun et al. 1998, The MNIST database.
    """

    name: str = "fashion_mnist"
    folder: str | None = None
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_numbers(self, "data.")
        require_one_of("data.name", self.name, _PUBLISHED)
        in_range = all(0 <= label < 10 for label in self.classes)
        require(in_range, "data.classes", "be labels from 0 to 9", self.classes)

    def shape(self) -> tuple[tuple[int, ...], CondSpec]:
        """Return the shape of one data point and the number of classes, without reading files."""
        return (28, 28, 1), class_spec(10)

    def load(self, split: Split, *, progress: Progress = Silent()) -> Dataset:
        """Read one split of the data set.

        Raises:
            ValueError: If files are missing and cannot be downloaded, or are damaged.
        """
        stems = _STEMS[:2] if split == "train" else _STEMS[2:]
        images_file, labels_file = (self._find(stem, progress) for stem in stems)
        images, labels = read_idx(images_file), read_idx(labels_file)
        is_valid = images.ndim == 3 and images.size > 0
        require(is_valid, f"file {images_file}", "hold images [n, height, width]", images.shape)
        matches = labels.shape == images.shape[:1]
        require(matches, f"file {labels_file}", f"hold {len(images)} labels", labels.shape)
        highest = int(np.max(labels))
        require(highest < 10, f"file {labels_file}", "hold labels 0 to 9", highest)
        if self.classes:
            chosen = np.isin(labels, self.classes)
            images, labels = images[chosen], labels[chosen]
        names = CLASS_NAMES[self.name]
        return Dataset(images[..., None], labels, num_classes=10, class_names=names)

    def _find(self, stem: str, progress: Progress) -> Path:
        """Return a file of the data set, after downloading it if necessary."""
        published = _PUBLISHED[self.name]
        if self.folder is not None:
            return _in_folder(Path(self.folder).expanduser(), stem)
        if published.installed is not None and (published.installed / f"{stem}.gz").is_file():
            return published.installed / f"{stem}.gz"
        file = cache_dir() / "datasets" / self.name / f"{stem}.gz"
        if not file.is_file():
            digest = published.sha256[_STEMS.index(stem)]
            mirrors = [f"{mirror}{stem}.gz" for mirror in published.mirrors]
            try:
                download(mirrors, file, sha256=digest, progress=progress)
            except DownloadError as error:
                raise ValueError(
                    f"data.folder must be a folder with {stem}.gz if it cannot be downloaded, "
                    f"got None ({error})"
                ) from error
        return file


def _in_folder(folder: Path, stem: str) -> Path:
    """Return the gzipped or plain file in a folder."""
    for file in (folder / f"{stem}.gz", folder / stem):
        if file.is_file():
            return file
    raise ValueError(
        f"data.folder must hold {stem}.gz (omit data.folder to download it), got {folder}"
    )
