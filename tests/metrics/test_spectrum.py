"""Tests of spectra of waves, white noise and constant images."""

import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.metrics import high_frequency_share, radial_spectrum


def wave(down, across, *, height=16, width=16, amplitude=1.0):
    """Return a gray image around 0.2 with `down` and `across` periods along its axes."""
    y, x = np.mgrid[:height, :width]
    values = amplitude * np.cos(2 * np.pi * (down * y / height + across * x / width) + 0.3)
    return (0.2 + values)[None, :, :, None].astype(np.float32)


def white_noise(num, height, width, channels, std=0.5):
    generator = np.random.default_rng(0)
    return std * generator.standard_normal((num, height, width, channels)).astype(np.float32)


# A period of p pixels has the frequency 2 / p, as a fraction of the Nyquist frequency.
@pytest.mark.parametrize(
    ("down", "across", "share"),
    [(1, 0, 0), (0, 3, 0), (2, 2, 0), (0, 4, 0), (3, 3, 1), (5, 0, 1), (0, 8, 1), (8, 8, 1)],
)
def test_wave_is_entirely_below_or_above_cutoff(down, across, share):
    # float32 rounds each pixel by 6e-8, so other energies are at most the square of it.
    result = high_frequency_share(wave(down, across), cutoff=0.5)
    assert result == pytest.approx(share, abs=1e-12)


def test_cutoff_is_fraction_of_nyquist_on_each_axis():
    image = wave(0, 6, height=10, width=24)  # 6 periods in 24 pixels are half of Nyquist.
    assert high_frequency_share(image, cutoff=0.49) == pytest.approx(1, abs=1e-12)
    assert high_frequency_share(image, cutoff=0.5) == pytest.approx(0, abs=1e-12)
    assert high_frequency_share(image, cutoff=0.51) == pytest.approx(0, abs=1e-12)


def test_energies_are_summed_before_division():
    low, high = wave(1, 1, amplitude=3.0), wave(0, 7, amplitude=4.0)
    # Energy is the squared amplitude: 16 of 9 + 16. The mean of the shares would be 1/2.
    for images in (low + high, np.concatenate([low, high]), np.concatenate([low, high], axis=3)):
        assert high_frequency_share(images) == pytest.approx(16 / 25, rel=1e-6)


@pytest.mark.parametrize("cutoff", [0.25, 0.5, 1.0])
def test_white_noise_share_is_fraction_of_frequencies(cutoff):
    images = white_noise(40, 12, 9, 2)
    down, across = 2 * np.fft.fftfreq(12), 2 * np.fft.fftfreq(9)
    above = np.hypot(down[:, None], across[None]) > cutoff + 1e-9
    share = above.sum() / (12 * 9 - 1)
    # The share is a ratio of sums of squares of n = 80 (12 * 9 - 1) independent normals, a Beta
    # variable with standard deviation sqrt(share (1 - share) / (n / 2 + 1)). Allow 4 of them.
    tolerance = 4 * np.sqrt(share * (1 - share) / (80 * 107 / 2 + 1))
    assert high_frequency_share(images, cutoff=cutoff) == pytest.approx(share, abs=tolerance)


def test_share_is_invariant_to_offset_scale_and_array_type():
    images = white_noise(5, 8, 8, 3)
    share = high_frequency_share(images)
    assert high_frequency_share(images.astype(np.float64) * 127.5 + 127.5) == pytest.approx(share)
    assert high_frequency_share(jnp.asarray(images)) == share


def test_block_boundaries_do_not_change_share():
    images = white_noise(300, 4, 6, 1)
    images[256:] *= 3.0
    centered = images - images.mean(axis=(1, 2), keepdims=True)
    power = np.sum(np.abs(np.fft.fft2(centered, axes=(1, 2))) ** 2, axis=(0, 3))
    radius = np.hypot(2 * np.fft.fftfreq(4)[:, None], 2 * np.fft.fftfreq(6)[None])
    expected = power[radius > 0.5 + 1e-9].sum() / power.sum()
    assert high_frequency_share(images) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.3, -1.0])
def test_constant_images_have_zero_share_and_power(value):
    images = np.full((3, 7, 5, 2), value, np.float32)
    assert high_frequency_share(images) == 0.0
    np.testing.assert_array_equal(radial_spectrum(images).power, 0.0)


def test_zero_cutoff_gives_share_one():
    assert high_frequency_share(white_noise(2, 6, 6, 1), cutoff=0.0) == pytest.approx(1)


def test_power_of_wave_is_in_its_ring():
    spectrum = radial_spectrum(wave(0, 5, amplitude=2.0))
    # Rings are 1/8 wide and include their outer bound: 5 periods in 16 pixels are 5/8.
    radius = np.hypot(*np.meshgrid(2 * np.fft.fftfreq(16), 2 * np.fft.fftfreq(16)))
    ring = (radius > 4 / 8) & (radius <= 5 / 8)
    # Two frequencies have the power 16 * 16 * (2 / 2)^2 each.
    expected = np.zeros(8)
    expected[4] = 2 * 256 / ring.sum()
    np.testing.assert_allclose(spectrum.power, expected, atol=1e-9)
    assert spectrum.frequency[4] == pytest.approx(radius[ring].mean())


@pytest.mark.parametrize("num_bins", [None, 1, 3])
def test_spectrum_of_white_noise_equals_variance(num_bins):
    images = white_noise(200, 11, 16, 2, std=0.5)
    spectrum = radial_spectrum(images, num_bins=num_bins)
    assert len(spectrum.power) == len(spectrum.frequency) == (num_bins or 5)
    assert np.all(np.diff(spectrum.frequency) > 0)
    # The smallest ring has 2 conjugate pairs of frequencies in 400 channels. The power of a pair
    # is exponential, so the relative standard error is 1 / sqrt(800). Allow 4 of them.
    np.testing.assert_allclose(spectrum.power, 0.25, rtol=4 / np.sqrt(800))


@pytest.mark.parametrize("function", [high_frequency_share, radial_spectrum])
@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8), (0, 8, 8, 1), (3, 1, 8, 1), (3, 8, 8, 0)])
def test_invalid_image_shapes_are_refused(function, shape):
    message = r"images must have shape \[n, height, width, channel\] with at least 2 x 2 pixels"
    with pytest.raises(ValueError, match=message):
        function(np.zeros(shape, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_images_are_refused(value):
    images = white_noise(2, 4, 4, 1)
    images[1, 2, 3, 0] = value
    with pytest.raises(ValueError, match="images must be finite, got inf or nan"):
        high_frequency_share(images)


def test_settings_out_of_range_are_refused():
    images = white_noise(1, 8, 6, 1)
    with pytest.raises(ValueError, match=r"cutoff must lie in \[0.0, 1.0\], got 1.5"):
        high_frequency_share(images, cutoff=1.5)
    with pytest.raises(ValueError, match=r"num_bins must lie in \[1, 3\], got 4"):
        radial_spectrum(images, num_bins=4)
