"""Devices of accelerators that are not present, for ahead-of-time compilation."""

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from fmjax._checks import require, require_at_least, require_one_of
from fmjax.sharding.mesh import Device

TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
_TPU_ENVIRONMENT = {  # Without these, libtpu queries a metadata server for the other hosts.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # A plan may run next to another plan or a training.
}
# Autotuning runs kernels, which needs a GPU; Triton matrix products need autotuning.
_GPU_FLAGS = ("--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false")


@dataclass(frozen=True)
class _Gpu:
    """Properties of a GPU that XLA needs for compilation, from NVIDIA's data sheets."""

    name: str
    cores: int
    clock_ghz: float
    memory: int
    memory_bandwidth: int
    l2_cache: int
    shared_per_core: int
    shared_per_block: int
    capability: int

    def describe(self) -> str:
        """Return XLA's target configuration as a text protocol buffer."""
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {self.shared_per_core}
  threads_per_core_limit: 2048
  core_count: {self.cores}
  fpus_per_core: {128 if self.capability >= 9 else 64}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {self.memory_bandwidth}
  l2_cache_size: {self.l2_cache}
  clock_rate_ghz: {self.clock_ghz}
  device_memory_size: {self.memory}
  shared_memory_per_block_optin: {self.shared_per_block}
  cuda_compute_capability {{ major: {self.capability} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{self.name}"
"""


_HOPPER = {
    "cores": 132,
    "clock_ghz": 1.98,
    "l2_cache": 52428800,
    "shared_per_core": 233472,
    "shared_per_block": 232448,
    "capability": 9,
}
GPUS = {
    "a100": _Gpu(
        "NVIDIA A100-SXM4-80GB", 108, 1.41, 85094825984, 2039000000000, 41943040, 167936, 166912, 8
    ),
    "h100": _Gpu(
        "NVIDIA H100 80GB HBM3", memory=84929347584, memory_bandwidth=3352320000000, **_HOPPER
    ),
    "h200": _Gpu("NVIDIA H200", memory=150754820096, memory_bandwidth=4917600000000, **_HOPPER),
}
GPUS_PER_NODE = 8
FAMILIES = (*TPUS, *GPUS, "cpu")


def devices_of(name: str, num_slices: int = 1) -> Sequence[Device]:
    """Return the devices of a topology, for a mesh to compile for; they cannot run programs.

    Call this before JAX initializes its devices: it restricts JAX to the CPU of this machine.

    Args:
        name: TPU family and grid of chips ("v5e:16x16", "v5p:4x4x4"), GPU model and count
            ("h100:8"), or number of simulated devices of this machine ("cpu:8").
        num_slices: Number of TPU slices of that grid, connected by the data-center network.

    Raises:
        ValueError: If the topology does not exist, or the package that compiles for it is missing.
    """
    family, _, grid = name.partition(":")
    require_one_of("topology", family, FAMILIES)
    require_at_least("num_slices", num_slices, 1)
    require(
        num_slices == 1 or family in TPUS, "num_slices", "be 1 unless topology is a TPU", num_slices
    )
    rule = "be like v5e:16x16, v5p:4x4x4, h100:8 or cpu:8"
    form = r"\d+(x\d+){1,2}" if family in TPUS else r"\d+"
    require(re.fullmatch(form, grid) is not None, "topology", rule, name)
    num_chips = math.prod(int(side[:9]) for side in grid.split("x"))
    require(num_chips >= 1, "topology", rule, name)
    most = 4_096 if family == "cpu" else 65_536
    num_devices = num_chips * num_slices
    rule = f"have at most {most:,} devices"
    require(num_devices <= most, "topology", rule, f"{num_devices:,}")
    if family == "cpu":
        return _fake_devices(int(grid))
    jax.config.update("jax_platforms", "cpu")
    if family in GPUS:
        for module in ("jax_cuda12_plugin", "nvidia", "nvidia.cudnn"):
            _require_package(name, module, "cuda12")
        flags = os.environ.get("XLA_FLAGS", "").split()
        os.environ["XLA_FLAGS"] = " ".join([*flags, *_GPU_FLAGS])
        target = GPUS[family].describe()
        return topologies.get_topology_desc(
            platform="cuda", topology=f"1x1x{grid}", target_config=target
        ).devices
    _require_package(name, "libtpu", "tpu")
    for variable, value in _TPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {} if num_slices == 1 else {"num_slices": num_slices}
    if family == "v4":  # As on a v4 machine, the two cores of a chip are one device.
        options["chip_config_name"] = "megacore"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:  # noqa: BLE001 (libtpu raises various types)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        got = f"{name}: {lines[0]}"
        raise ValueError(f"topology must be supported by libtpu, got {got}") from error


def domain_of(device: Device, position: int) -> int:
    """Return the number of the TPU slice or GPU node of a device, within which links are fast.

    Args:
        device: A device, present or of a topology.
        position: Position of the device in the mesh. It determines the GPU node, because devices of
            a topology do not state theirs.
    """
    if device.platform == "tpu":
        return getattr(device, "slice_index", 0)
    return position // GPUS_PER_NODE if device.platform in ("cuda", "gpu") else 0


def _fake_devices(count: int) -> Sequence[Device]:
    with contextlib.suppress(RuntimeError):  # JAX has already initialized its devices.
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    rule = f"have the {len(devices)} devices that JAX was started with"
    require(len(devices) == count, "topology", rule, f"cpu:{count}")
    return devices


def _require_package(topology: str, module: str, extra: str) -> None:
    is_installed = importlib.util.find_spec(module) is not None
    rule = f"have its compiler installed: pip install 'fmjax[{extra}]'"
    require(is_installed, f"topology {topology}", rule, f"no package {module}")
