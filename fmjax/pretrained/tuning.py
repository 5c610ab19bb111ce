"""A released transformer to be trained on: which of its parameters learn, and which stay.

Either all learn, but a table of positions, or adapters alone (`networks/layers/lora.py`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fmjax._arrays import Conditions, Params, PRNGKey
from fmjax._checks import require
from fmjax._progress import Progress, Silent
from fmjax._trees import flatten_dict, partition
from fmjax.networks import FluxConfig, MMDiTConfig, NetworkConfig, make_flux, make_mmdit
from fmjax.networks.layers.lora import LORA, LoRAConfig
from fmjax.networks.transformers.text_to_image import require_text
from fmjax.paths import VelocityNet
from fmjax.pretrained.components import transformer_config
from fmjax.pretrained.config_files import read_about
from fmjax.pretrained.families.flux import flux_config_json, flux_views
from fmjax.pretrained.families.sd3 import sd3_config_json, sd3_views
from fmjax.pretrained.files import TensorFiles, find_files
from fmjax.pretrained.layouts import all_tensors
from fmjax.pretrained.lora.files import lora_tensors
from fmjax.pretrained.lora.layouts import adapter_views, chosen_adapters
from fmjax.pretrained.pipeline import reverse_network_time
from fmjax.pretrained.weights import check_tensors, load_params, write_tensors
from fmjax.sharding import laid_out

_FIXED = "positions"
"""A table among the weights of SD3 that is not trained."""
_SETTINGS = ("dtype", "unroll_layers", "remat", "attention")
# What of a config.json the data decides.
_DATA = {
    "in_channels": "latents whose channels (of FLUX, those of a patch) are",
    "joint_attention_dim": "text whose tokens' width is",
    "pooled_projection_dim": "text whose pooled width is",
}


class Tuning(NamedTuple):
    """A released network that is trained on.

    Attributes:
        net: Its parameters are those that learn and those that stay, `combine`; its `init` gives
            those that learn. It is a velocity from noise at t = 0 to data, as every network here.
        init: `init(key) -> params`, all of them.
        views: Of the network's own parameters, those of adapters aside.
        lora: The adapters' config; None if the network's own parameters learn.
        adapters: Views of their parameters; empty without.
        about: The config.json that the network has.
        dtype: Of what stays.
    """

    net: VelocityNet
    init: Callable[[PRNGKey], Params]
    views: Any
    lora: LoRAConfig | None
    adapters: Any
    about: Mapping[str, Any]
    dtype: str

    def learns(self, name: str) -> bool:
        """Whether the parameter of a dotted name is trained."""
        words = name.split(".")
        return _FIXED not in words if self.lora is None else LORA in words

    def frozen(self, mesh: Mesh) -> Any:
        """What stays as it is, as `jax.ShapeDtypeStruct`s that say where it lies."""
        _, rest = partition(jax.eval_shape(self.init, jax.random.key(0)), self.learns)
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, self.dtype), rest)
        return laid_out(like, mesh, self.net.tensor_axes)

    def check(self, folder: Path) -> None:
        """Raise unless a released folder has the weights of this network; reads none of them.

        Args:
            folder: Of a pipeline or a transformer.

        Raises:
            ValueError: If the data is not what the folder's transformer takes, or its files lack
                something, or are of another network.
        """
        where = transformer_folder(folder)
        found = read_about(where / "config.json")
        for name, of in _DATA.items():
            rule = f"have {of} {found.get(name)}, as the transformer in {where}"
            require(found.get(name) == self.about[name], "data", rule, self.about[name])
        with TensorFiles(find_files(where)) as files:
            check_tensors(files, self.views)

    def load(self, folder: Path, like: Any, *, dtype: Any, progress: Progress = Silent()) -> Params:
        """Released weights of some of the network's own parameters.

        Args:
            folder: Of a pipeline or a transformer.
            like: Their shapes and shardings, nested dicts.
            dtype: Of the weights.
            progress: Hears of each.

        Raises:
            ValueError: If the files lack something, or are of another network.
        """
        wanted = flatten_dict(like)
        views, _ = partition(self.views, wanted.__contains__)
        with TensorFiles(find_files(transformer_folder(folder))) as files:
            check_tensors(files, self.views)
            return load_params(files, views, like, dtype=dtype, progress=progress)


def make_tuning(
    network: NetworkConfig,
    event_shape: tuple[int, ...],
    conditions: Conditions,
    lora: LoRAConfig | None,
    *,
    dtype: str = "float32",
) -> Tuning:
    """A network of a released kind, to be trained on.

    Args:
        network: A FLUX or an MM-DiT.
        event_shape: Of latents.
        conditions: Sizes of the text.
        lora: Adapters that learn; None trains the network's own parameters.
        dtype: Of the weights that adapters are of.

    Raises:
        ValueError: If it is another network, does not take such latents or text, or lacks layers
            that are to have adapters.
    """
    text = require_text(conditions, "a released")
    if isinstance(network, FluxConfig):
        about = flux_config_json(network, event_shape[-1], text)
        make, views = partial(make_flux, network), flux_views(about)
    elif isinstance(network, MMDiTConfig):
        about = sd3_config_json(network, event_shape[-1], text)
        make, views = partial(make_mmdit, network), sd3_views(about)
    else:
        raise ValueError(
            "network must be a FluxConfig or an MMDiTConfig with released weights, "
            f"got {type(network).__name__}"
        )
    adapters = None if lora is None else chosen_adapters(views, lora)
    whole = make(event_shape, text, adapters)
    own = {} if adapters is None else adapter_views(views, adapters)
    # What little stays of a network that learns itself is worth its bytes.
    dtype = "float32" if lora is None else dtype
    tuning = Tuning(reverse_network_time(whole), whole.init, views, lora, own, about, dtype)

    def init(key: PRNGKey) -> Params:
        return partition(whole.init(key), tuning.learns)[0]

    return tuning._replace(net=tuning.net._replace(init=init))


def transformer_folder(folder: Path) -> Path:
    """Where the transformer is in a folder of diffusers: a whole pipeline's, or its own."""
    return folder / "transformer" if (folder / "model_index.json").is_file() else folder


def released_network(folder: Path, network: NetworkConfig) -> NetworkConfig:
    """The network of a released folder, computed as another config says.

    Args:
        folder: A pipeline's or a transformer's.
        network: Whose dtype, remat, attention and unrolling are kept, and the guidance scale of a
            network that takes one. Others (schnell) accept 0, 1 and the default.

    Raises:
        ValueError: If there is no transformer of a known kind, or a guidance scale is set for one
            that takes none.
    """
    where = transformer_folder(folder)
    about = read_about(where / "config.json")
    settings = {name: getattr(network, name) for name in _SETTINGS if hasattr(network, name)}
    try:
        made = transformer_config(about, **settings)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not isinstance(made, FluxConfig) or not isinstance(network, FluxConfig):
        return made
    if made.guidance is None:
        rule = f"be 0 or 1, or left out, for the model without guidance in {where}"
        none = network.guidance in (None, 0.0, 1.0, FluxConfig.guidance)
        require(none, "network.guidance", rule, network.guidance)
    elif network.guidance is not None:
        made = dataclasses.replace(made, guidance=network.guidance)
    return made


def save_lora(path: Path, params: Params, tuning: Tuning) -> None:
    """Write trained adapters as a LoRA file for diffusers and PEFT.

    Args:
        path: Of the file.
        params: The adapters' parameters.
        tuning: Whose they are.
    """
    assert tuning.lora is not None
    shapes, leaves = all_tensors(tuning.adapters), flatten_dict(params)
    tensors = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    for name, view in flatten_dict(tuning.adapters).items():
        view.write(np.asarray(leaves[name]), tuple(slice(0, n) for n in view.shape), tensors)
    write_tensors(path, *lora_tensors(tensors, tuning.lora.rank, tuning.lora.scale))
