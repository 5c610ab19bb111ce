"""How much of images is fine detail, which samples made in too few steps lack."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from fmjax._checks import require, require_between, require_count
from fmjax._inputs import described, is_array

_IMAGES = 256
# Rounding must not decide on which side of a bound a frequency lies that is equal to it.
_SLACK = 1e-9


class RadialSpectrum(NamedTuple):
    """Power by spatial frequency, float64.

    Attributes:
        frequency: Mean frequency of each ring, `[num_bins]`, as a share of Nyquist's.
        power: Mean power of each ring, `[num_bins]`, in squared data units: that of white noise
            is its variance at all frequencies.
    """

    frequency: np.ndarray
    power: np.ndarray


def high_frequency_share(images: np.ndarray | jax.Array, *, cutoff: float = 0.5) -> float:
    """Share of the images' energy that lies at high spatial frequencies, in [0, 1].

    Samples below the share of real images lack detail, those above it hold noise. Energies are
    summed over the whole set before they are divided: images of more contrast count for more.
    The mean of each channel of each image is no part of it. The transform takes images as
    periodic: a jump from one edge to the opposite one counts as detail, in samples and in real
    images alike.

    Args:
        images: `[n, height, width, channel]`, in [-1, 1] or any other unit.
        cutoff: Frequencies above it are high, as a share of Nyquist's, in [0, 1]. A frequency is
            the length of its vector, so that diagonal ones reach up to the root of 2.

    Returns:
        The share, computed in float64 on the host; 0 if all images are constant.

    Raises:
        ValueError: If the images have another shape or hold inf or nan, or the cutoff lies
            outside [0, 1].
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
    """Mean power in rings of equal width, from zero to Nyquist's frequency.

    Over the whole set and all channels. The mean of each image and the diagonal frequencies
    above Nyquist's are left out.

    Args:
        images: `[n, height, width, channel]`.
        num_bins: How many rings, at most half of the shorter side, so that none is empty; None
            for as many.

    Raises:
        ValueError: If the images have another shape or hold inf or nan, or there are too many
            rings.
    """
    power = _mean_power(images)
    most = min(power.shape) // 2
    num = most if num_bins is None else num_bins
    require_count("num_bins", num, 1)
    require_between("num_bins", num, 1, most)
    radius = _radius(power.shape)
    kept = (radius > 0.0) & (radius <= 1.0 + _SLACK)
    ring = np.ceil(radius[kept] * num - _SLACK).astype(int) - 1
    count = np.bincount(ring, minlength=num)
    frequency, mean = (
        np.bincount(ring, weights=value[kept], minlength=num) / count for value in (radius, power)
    )
    return RadialSpectrum(frequency, mean)


def _mean_power(images: np.ndarray | jax.Array) -> Float[np.ndarray, "height width"]:
    """`|F|^2 / (height width)` of each frequency, mean over images and channels, 0 at zero."""
    require(is_array(images), "images", "be an array of numbers", described(images))
    right = images.ndim == 4 and min(images.shape) >= 1 and min(images.shape[1:3]) >= 2
    rule = "be [n, height, width, channel], of at least 2 x 2 pixels"
    require(right, "images", rule, f"shape {images.shape}")
    num, height, width, channels = images.shape
    power = np.zeros((height, width))
    for start in range(0, num, _IMAGES):
        x = np.asarray(images[start : start + _IMAGES], np.float64)
        require(bool(np.isfinite(x).all()), "images", "be finite", "inf or nan")
        # Of a constant image this leaves exactly nothing, where its mean is off by rounding.
        # It changes no frequency but zero.
        x = x - x[:, :1, :1]
        power += np.sum(np.square(np.abs(np.fft.fft2(x, axes=(1, 2)))), axis=(0, 3))
    power[0, 0] = 0.0
    return power / (num * channels * height * width)


def _radius(shape: tuple[int, ...]) -> Float[np.ndarray, "height width"]:
    """The length of each frequency, as a share of Nyquist's."""
    down, across = (2.0 * np.fft.fftfreq(size) for size in shape)
    return np.hypot(down[:, None], across[None])
