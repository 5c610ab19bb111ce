"""Spectra of waves of known frequency, of white noise, and of nothing at all."""

import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.metrics import high_frequency_share, radial_spectrum


def wave(down, across, *, height=16, width=16, amplitude=1.0):
    """One gray image with `down` and `across` periods along its axes, around 0.2."""
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
def test_a_wave_lies_wholly_below_or_above_the_cutoff(down, across, share):
    # float32 rounds each pixel by 6e-8, so the energy elsewhere is at most its square.
    found = high_frequency_share(wave(down, across), cutoff=0.5)
    assert found == pytest.approx(share, abs=1e-12)


def test_a_cutoff_counts_in_shares_of_nyquist_on_either_axis():
    image = wave(0, 6, height=10, width=24)  # 6 periods in 24 pixels: half of Nyquist.
    assert high_frequency_share(image, cutoff=0.49) == pytest.approx(1, abs=1e-12)
    assert high_frequency_share(image, cutoff=0.5) == pytest.approx(0, abs=1e-12)
    assert high_frequency_share(image, cutoff=0.51) == pytest.approx(0, abs=1e-12)


def test_energies_of_images_and_channels_are_summed_before_they_are_divided():
    low, high = wave(1, 1, amplitude=3.0), wave(0, 7, amplitude=4.0)
    # Energy goes as the amplitude squared: 16 of 9 + 16. The mean of shares would be a half.
    for images in (low + high, np.concatenate([low, high]), np.concatenate([low, high], axis=3)):
        assert high_frequency_share(images) == pytest.approx(16 / 25, rel=1e-6)


@pytest.mark.parametrize("cutoff", [0.25, 0.5, 1.0])
def test_white_noise_has_the_share_of_frequencies_above_the_cutoff(cutoff):
    images = white_noise(40, 12, 9, 2)
    down, across = 2 * np.fft.fftfreq(12), 2 * np.fft.fftfreq(9)
    above = np.hypot(down[:, None], across[None]) > cutoff + 1e-9
    share = above.sum() / (12 * 9 - 1)
    # A ratio of sums of squares of 80 (12 9 - 1) independent normals, a Beta variable with
    # half as many counts: standard deviation sqrt(share (1 - share) / (half + 1)). 4 of them.
    error = 4 * np.sqrt(share * (1 - share) / (80 * 107 / 2 + 1))
    assert high_frequency_share(images, cutoff=cutoff) == pytest.approx(share, abs=error)


def test_the_mean_and_the_unit_do_not_matter_and_jax_arrays_will_do():
    images = white_noise(5, 8, 8, 3)
    share = high_frequency_share(images)
    assert high_frequency_share(images.astype(np.float64) * 127.5 + 127.5) == pytest.approx(share)
    assert high_frequency_share(jnp.asarray(images)) == share


def test_images_are_taken_in_blocks_without_a_seam():
    images = white_noise(300, 4, 6, 1)
    images[256:] *= 3.0
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    power = np.sum(np.abs(np.fft.fft2(centred, axes=(1, 2))) ** 2, axis=(0, 3))
    radius = np.hypot(2 * np.fft.fftfreq(4)[:, None], 2 * np.fft.fftfreq(6)[None])
    wanted = power[radius > 0.5 + 1e-9].sum() / power.sum()
    assert high_frequency_share(images) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.3, -1.0])
def test_constant_images_have_no_detail(value):
    images = np.full((3, 7, 5, 2), value, np.float32)
    assert high_frequency_share(images) == 0.0
    np.testing.assert_array_equal(radial_spectrum(images).power, 0.0)


def test_without_a_cutoff_all_energy_is_high():
    assert high_frequency_share(white_noise(2, 6, 6, 1), cutoff=0.0) == pytest.approx(1)


def test_a_wave_stands_in_its_ring_of_the_spectrum_with_its_power():
    found = radial_spectrum(wave(0, 5, amplitude=2.0))
    # Rings 1/8 wide up to and with their outer bound: 5 periods in 16 pixels are 5/8.
    radius = np.hypot(*np.meshgrid(2 * np.fft.fftfreq(16), 2 * np.fft.fftfreq(16)))
    ring = (radius > 4 / 8) & (radius <= 5 / 8)
    # Two frequencies, of 16 16 (2 / 2)^2 each.
    expected = np.zeros(8)
    expected[4] = 2 * 256 / ring.sum()
    np.testing.assert_allclose(found.power, expected, atol=1e-9)
    assert found.frequency[4] == pytest.approx(radius[ring].mean())


@pytest.mark.parametrize("num_bins", [None, 1, 3])
def test_the_spectrum_of_white_noise_is_its_variance_everywhere(num_bins):
    images = white_noise(200, 11, 16, 2, std=0.5)
    found = radial_spectrum(images, num_bins=num_bins)
    assert len(found.power) == len(found.frequency) == (num_bins or 5)
    assert np.all(np.diff(found.frequency) > 0)
    # The emptiest ring has 4 frequencies in 2 conjugate pairs, each pair's power exponential, in
    # 400 channels: a relative standard error of 1 / sqrt(800). 4 of them.
    np.testing.assert_allclose(found.power, 0.25, rtol=4 / np.sqrt(800))


@pytest.mark.parametrize("function", [high_frequency_share, radial_spectrum])
@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8), (0, 8, 8, 1), (3, 1, 8, 1), (3, 8, 8, 0)])
def test_what_is_no_set_of_images_is_refused(function, shape):
    message = r"images must have shape \[n, height, width, channel\] with at least 2 x 2 pixels"
    with pytest.raises(ValueError, match=message):
        function(np.zeros(shape, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_that_are_not_finite_are_refused(value):
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
