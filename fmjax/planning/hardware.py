"""Peak compute rate, memory and bandwidths of accelerators."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Limits of one device, as JAX counts devices.

    Attributes:
        peak_flops: Peak floating-point operations per second in bfloat16, without sparsity.
        memory: Bytes of device memory available to a program.
        memory_bandwidth: Bytes per second between the device and its memory.
        link_bandwidth: Bytes per second that the device can send to its neighbors, over all links.
        network_bandwidth: Bytes per second that the device can send to other slices or nodes: its
            share of the network bandwidth of its machine.
    """

    peak_flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float


_GIB = 2.0**30
# libtpu gives a program 98 % of the memory of a TPU (15.75 of 16 GiB). JAX allocates three quarters
# of the memory of a GPU, unless XLA_PYTHON_CLIENT_MEM_FRACTION is set.
_OF_TPU, _OF_GPU = 0.984 * _GIB, 0.75

# Keys are `device_kind`. A TPU7x chip is two devices; each has half of the published values.
# Reference: Google Cloud's page of each TPU version (link bandwidths halved, because they are
# stated for both directions); NVIDIA's data sheets of A100, H100 and H200 (SXM), and of DGX A100
# and H100 for the network. Google states no network bandwidth for v4; v5p's is used.
CHIPS = {
    "TPU v4": Chip(275e12, 32 * _OF_TPU, 1.2e12, 300e9, 6.25e9),
    "TPU v5 lite": Chip(197e12, 16 * _OF_TPU, 819e9, 200e9, 3.125e9),
    "TPU v5": Chip(459e12, 95 * _OF_TPU, 2.765e12, 600e9, 6.25e9),
    "TPU v6 lite": Chip(918e12, 32 * _OF_TPU, 1.6e12, 400e9, 12.5e9),
    "TPU7x": Chip(1153e12, 96 * _OF_TPU, 3.69e12, 300e9, 6.25e9),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 42.5e9 * _OF_GPU, 1.555e12, 300e9, 25e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 85.1e9 * _OF_GPU, 2.039e12, 300e9, 25e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 84.9e9 * _OF_GPU, 3.35e12, 450e9, 50e9),
    "NVIDIA H200": Chip(989e12, 150.8e9 * _OF_GPU, 4.8e12, 450e9, 50e9),
}
