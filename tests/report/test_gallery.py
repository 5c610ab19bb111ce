"""Tests of the gallery file: rounding of images and refused files."""

import numpy as np
import pytest

from fmjax.report.comparison import SolverRun
from fmjax.report.gallery import GalleryEntry, read_gallery, write_gallery

RUN = SolverRun("Heun", 8, None, 16.0, 16, 0.1, 0.2, 1.0, model="linear")


def test_gallery_round_trip_is_accurate_to_half_a_byte(tmp_path):
    images = np.random.default_rng(0).uniform(-1.2, 1.2, (3, 4, 4, 1)).astype(np.float32)
    images[0, 0, 0, 0] = np.nan  # Failed samples contain NaN, which is shown as gray.
    write_gallery([GalleryEntry.of(RUN, images), GalleryEntry.of(RUN, -images)], tmp_path / "g.npz")
    first, second = read_gallery(tmp_path / "g.npz")
    assert first[:5] == ("linear", "Heun", "8 steps", "fixed", 16.0)
    expected = np.clip(np.nan_to_num(images), -1, 1)
    np.testing.assert_allclose(first.images, expected, atol=0.5 / 127.5 + 1e-6)
    np.testing.assert_allclose(second.images, -expected, atol=0.5 / 127.5 + 1e-6)


def test_other_npz_file_is_refused(tmp_path):
    np.savez(tmp_path / "g.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"g\.npz must be a gallery written by fmjax, got"):
        read_gallery(tmp_path / "g.npz")
