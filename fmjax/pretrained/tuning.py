"""Fine-tuning of released transformers: which parameters are trained and which are frozen.

Either all parameters except the table of positions are trained, or only LoRA adapters are
(`networks/layers/lora.py`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import PyTree

from fmjax._arrays import Params, PRNGKey
from fmjax._checks import require
from fmjax._progress import Progress, Silent
from fmjax._specs import CondSpec
from fmjax._trees import flatten_dict, partition
from fmjax.networks import (
    FluxConfig,
    MMDiTConfig,
    NetworkConfig,
    NetworkFactory,
    make_flux,
    make_mmdit,
)
from fmjax.networks.layers.lora import LORA, LoRAConfig
from fmjax.networks.transformers.text_to_image import require_text
from fmjax.paths import VelocityNet
from fmjax.pretrained.components import transformer_config
from fmjax.pretrained.config_files import read_config_json
from fmjax.pretrained.families.flux import flux_config_json, flux_layouts
from fmjax.pretrained.families.sd3 import sd3_config_json, sd3_layouts
from fmjax.pretrained.files import TensorFiles, find_files
from fmjax.pretrained.layouts import Layouts, all_tensors
from fmjax.pretrained.lora.files import lora_tensors
from fmjax.pretrained.lora.layouts import adapter_layouts, chosen_adapters
from fmjax.pretrained.pipeline import reverse_network_time
from fmjax.pretrained.weights import check_tensors, load_params, write_tensors
from fmjax.sharding import with_shardings

_FIXED = "positions"
"""Name of SD3's table of positions, which is never trained."""
_SETTINGS = ("dtype", "unroll_layers", "remat", "attention")
# Keys of a config.json that the data must match.
_DATA_SIZES = {
    "in_channels": "latent channels (for FLUX, channels of a patch) equal to",
    "joint_attention_dim": "text tokens of width",
    "pooled_projection_dim": "pooled text of width",
}


class Tuning(NamedTuple):
    """A released network that is fine-tuned.

    Attributes:
        net: Velocity network with noise at t = 0. Its `init` returns only the trained parameters;
            its `apply` takes the trained and frozen parameters, merged by `combine`.
        init: `init(key) -> params`: initializes all parameters.
        layouts: Layouts of the parameters of the released network, without adapters.
        lora: Config of the LoRA adapters; None if the parameters of the network are trained.
        adapters: Layouts of the adapters' parameters; empty without adapters.
        config_json: Contents of the config.json that describes the network.
        dtype: Dtype of the frozen parameters.
    """

    net: VelocityNet
    init: Callable[[PRNGKey], Params]
    layouts: Layouts
    lora: LoRAConfig | None
    adapters: Layouts
    config_json: Mapping[str, Any]
    dtype: str

    def learns(self, name: str) -> bool:
        """Whether the parameter with a dotted name is trained."""
        words = name.split(".")
        return _FIXED not in words if self.lora is None else LORA in words

    def frozen(self, mesh: Mesh) -> PyTree:
        """Return the shapes, dtypes and shardings of the frozen parameters on a mesh."""
        _, frozen = partition(jax.eval_shape(self.init, jax.random.key(0)), self.learns)
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, self.dtype), frozen)
        return with_shardings(like, mesh, self.net.tensor_axes)

    def check(self, folder: Path) -> None:
        """Check that a released folder holds the weights of this network, without reading them.

        Args:
            folder: Folder of a pipeline or a transformer.

        Raises:
            ValueError: If the sizes of the data differ from those of the transformer, or its files
                are missing or belong to another network.
        """
        folder = transformer_folder(folder)
        config_json = read_config_json(folder / "config.json")
        for name, description in _DATA_SIZES.items():
            rule = f"have {description} {config_json.get(name)}, like the transformer in {folder}"
            require(
                config_json.get(name) == self.config_json[name],
                "data",
                rule,
                self.config_json[name],
            )
        with TensorFiles(find_files(folder)) as files:
            check_tensors(files, self.layouts)

    def load(
        self, folder: Path, like: PyTree, *, dtype: DTypeLike, progress: Progress = Silent()
    ) -> Params:
        """Load released weights of some parameters of the network.

        Args:
            folder: Folder of a pipeline or a transformer.
            like: Shapes and shardings of the parameters to load, nested dicts of
                `jax.ShapeDtypeStruct`.
            dtype: Dtype of the weights.
            progress: Receives one step per parameter.

        Raises:
            ValueError: If files are missing or belong to another network.
        """
        names = flatten_dict(like)
        layouts, _ = partition(self.layouts, names.__contains__)
        with TensorFiles(find_files(transformer_folder(folder))) as files:
            check_tensors(files, self.layouts)
            return load_params(files, layouts, like, dtype=dtype, progress=progress)


def make_tuning(
    network: NetworkConfig | NetworkFactory,
    event_shape: tuple[int, ...],
    conditions: CondSpec,
    lora: LoRAConfig | None,
    *,
    dtype: str = "float32",
) -> Tuning:
    """Build a released network for fine-tuning.

    Args:
        network: Config of a FLUX or MM-DiT network.
        event_shape: Shape of the latents of one image.
        conditions: Sizes of the text condition.
        lora: Config of the LoRA adapters to train; None trains the parameters of the network.
        dtype: Dtype of the frozen parameters under the adapters. Without adapters they are float32.

    Raises:
        ValueError: If the network has no released weights, does not support the latents or the
            text, or lacks layers that `lora` selects.
    """
    text = require_text(conditions, "a released")
    if isinstance(network, FluxConfig):
        config_json = flux_config_json(network, event_shape[-1], text)
        make, layouts = partial(make_flux, network), flux_layouts(config_json)
    elif isinstance(network, MMDiTConfig):
        config_json = sd3_config_json(network, event_shape[-1], text)
        make, layouts = partial(make_mmdit, network), sd3_layouts(config_json)
    else:
        raise ValueError(
            "network must be a FluxConfig or an MMDiTConfig with released weights, "
            f"got {type(network).__name__}"
        )
    adapters = None if lora is None else chosen_adapters(layouts, lora)
    net = make(event_shape, text, adapters)
    lora_layouts = {} if adapters is None else adapter_layouts(layouts, adapters)
    # Without adapters, only a small table is frozen, so float32 costs little memory.
    dtype = "float32" if lora is None else dtype
    tuning = Tuning(
        reverse_network_time(net), net.init, layouts, lora, lora_layouts, config_json, dtype
    )

    def init(key: PRNGKey) -> Params:
        return partition(net.init(key), tuning.learns)[0]

    return tuning._replace(net=tuning.net._replace(init=init))


def transformer_folder(folder: Path) -> Path:
    """Return the folder of the transformer, given that of a pipeline or of the transformer."""
    return folder / "transformer" if (folder / "model_index.json").is_file() else folder


def released_network(
    folder: Path, network: NetworkConfig | NetworkFactory
) -> FluxConfig | MMDiTConfig:
    """Return the network config of a released transformer, with the settings of another config.

    Args:
        folder: Folder of a pipeline or a transformer.
        network: Config from which dtype, remat, attention and unroll_layers are taken, and the
            guidance scale if both networks take guidance as an input. For a released network
            without that input (schnell), its guidance must be 0, 1, None or the default.

    Raises:
        ValueError: If there is no supported transformer, or a guidance scale is set for one without
            guidance input.
    """
    folder = transformer_folder(folder)
    config_json = read_config_json(folder / "config.json")
    settings = {name: getattr(network, name) for name in _SETTINGS if hasattr(network, name)}
    try:
        config = transformer_config(config_json, **settings)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    if not isinstance(config, FluxConfig) or not isinstance(network, FluxConfig):
        return config
    if config.guidance is None:
        rule = f"be 0, 1 or omitted for the model without guidance in {folder}"
        unset = network.guidance in (None, 0.0, 1.0, FluxConfig.guidance)
        require(unset, "network.guidance", rule, network.guidance)
    elif network.guidance is not None:
        config = dataclasses.replace(config, guidance=network.guidance)
    return config


def save_lora(file: Path, params: Params, tuning: Tuning) -> None:
    """Write trained adapters to a LoRA file for diffusers and PEFT.

    Args:
        file: File to write.
        params: Parameters of the adapters.
        tuning: The fine-tuned network with these adapters.
    """
    assert tuning.lora is not None
    shapes, leaves = all_tensors(tuning.adapters), flatten_dict(params)
    tensors = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    for name, layout in flatten_dict(tuning.adapters).items():
        layout.write(np.asarray(leaves[name]), tuple(slice(0, n) for n in layout.shape), tensors)
    write_tensors(file, *lora_tensors(tensors, tuning.lora.rank, tuning.lora.scale))
