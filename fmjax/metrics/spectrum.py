"""Power spectrum of images: samples made with too few steps lack high frequencies."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from fmjax._checks import require, require_between, require_count
from fmjax._inputs import describe, is_array

_IMAGES = 256
# Tolerance for frequencies on the boundary of a ring, so that rounding does not decide their ring.
_SLACK = 1e-9


class RadialSpectrum(NamedTuple):
    """Mean power in rings of spatial frequency, float64.

    Attributes:
        frequency: Mean frequency of each ring, `[num_bins]`, as a fraction of the Nyquist
            frequency.
        power: Mean power of each ring, `[num_bins]`, in squared data units. The power of white
            noise equals its variance at all frequencies.
    """

    frequency: np.ndarray
    power: np.ndarray


def high_frequency_share(images: np.ndarray | jax.Array, *, cutoff: float = 0.5) -> float:
    """Compute the fraction of the images' energy at high spatial frequencies, in [0, 1].

    Samples with a lower fraction than real images lack detail; samples with a higher fraction
    contain noise. Energies are summed over all images before the division, so images with more
    contrast have more weight. The mean of each channel of each image is excluded. The Fourier
    transform treats images as periodic, so a jump between opposite edges counts as detail.

    Args:
        images: `[n, height, width, channel]`, in any unit.
        cutoff: Frequencies above this value are high, as a fraction of the Nyquist frequency, in
            [0, 1]. A frequency is the norm of its two-dimensional vector, at most `sqrt(2)`.

    Returns:
        The fraction, computed in float64 on the host; 0 if all images are constant.

    Raises:
        ValueError: If the images have another shape or hold inf or nan, or `cutoff` lies outside
            [0, 1].
    """
    require_between("cutoff", cutoff, 0.0, 1.0)
    power = _mean_power(images)
    total = float(power.sum())
    if total == 0.0:
        return 0.0
    return float(power[_radius(power.shape) > cutoff + _SLACK].sum()) / total


def radial_spectrum(
    images: np.ndarray | jax.Array, *, num_bins: int | None = None
) -> RadialSpectrum:
    """Compute the mean power in rings of equal width, from zero to the Nyquist frequency.

    The mean runs over all images and channels. The mean of each image and diagonal frequencies
    above the Nyquist frequency are excluded.

    Args:
        images: `[n, height, width, channel]`, in any unit.
        num_bins: Number of rings, at most half of the shorter side, so that no ring is empty. None
            for this maximum.

    Raises:
        ValueError: If the images have another shape or hold inf or nan, or `num_bins` is out of
            range.
    """
    power = _mean_power(images)
    max_bins = min(power.shape) // 2
    num = max_bins if num_bins is None else num_bins
    require_count("num_bins", num, 1)
    require_between("num_bins", num, 1, max_bins)
    radius = _radius(power.shape)
    included = (radius > 0.0) & (radius <= 1.0 + _SLACK)
    ring = np.ceil(radius[included] * num - _SLACK).astype(int) - 1
    count = np.bincount(ring, minlength=num)
    frequency, mean = (
        np.bincount(ring, weights=value[included], minlength=num) / count
        for value in (radius, power)
    )
    return RadialSpectrum(frequency, mean)


def _mean_power(images: np.ndarray | jax.Array) -> Float[np.ndarray, "height width"]:
    """Compute the mean over images and channels of `|F|^2 / (height width)`; 0 at frequency 0."""
    require(is_array(images), "images", "be an array of numbers", describe(images))
    shape_ok = images.ndim == 4 and min(images.shape) >= 1 and min(images.shape[1:3]) >= 2
    rule = "have shape [n, height, width, channel] with at least 2 x 2 pixels"
    require(shape_ok, "images", rule, f"shape {images.shape}")
    num, height, width, channels = images.shape
    power = np.zeros((height, width))
    for start in range(0, num, _IMAGES):
        x = np.asarray(images[start : start + _IMAGES], np.float64)
        require(bool(np.isfinite(x).all()), "images", "be finite", "inf or nan")
        # Makes a constant image exactly zero, which subtracting its rounded mean would not. Only
        # the frequency zero changes.
        x = x - x[:, :1, :1]
        power += np.sum(np.square(np.abs(np.fft.fft2(x, axes=(1, 2)))), axis=(0, 3))
    power[0, 0] = 0.0
    return power / (num * channels * height * width)


def _radius(shape: tuple[int, ...]) -> Float[np.ndarray, "height width"]:
    """Compute the norm of each frequency, as a fraction of the Nyquist frequency."""
    vertical, horizontal = (2.0 * np.fft.fftfreq(size) for size in shape)
    return np.hypot(vertical[:, None], horizontal[None])
