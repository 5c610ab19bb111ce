"""What a run made of released weights, written as diffusers reads it."""

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from fmjax._arrays import Params
from fmjax._checks import require
from fmjax._files import require_folder, require_space, require_target, size_of
from fmjax._locks import lock_file, lock_folder
from fmjax._progress import Progress, Silent
from fmjax._stopping import at_stop
from fmjax._trees import combine, flatten_dict, unflatten_dict
from fmjax.config import Config, build
from fmjax.pretrained.components import Loaded, load_component, make_component
from fmjax.pretrained.config_files import read_about
from fmjax.pretrained.files import TensorFiles, find_files
from fmjax.pretrained.folder import (
    is_model_folder,
    open_model,
    require_apart,
    save_component,
    save_model,
)
from fmjax.pretrained.lora.files import LORA_FILE
from fmjax.pretrained.tuning import Tuning, save_lora, transformer_folder
from fmjax.pretrained.weights import dtype_of, filling, require_new
from fmjax.runs.folder import RunFolder, read_config, read_model, require_no_run
from fmjax.sharding import MeshConfig, laid_out, make_mesh
from fmjax.training import restore_ema


def export_run(
    path: Path,
    output: Path,
    *,
    merged: bool = False,
    pipeline: bool = False,
    overwrite: bool = False,
    progress: Progress = Silent(),
) -> Path:
    """Write the averaged weights of a run of a released network.

    They are of the type of the released weights; what was not trained is what it was, byte for
    byte.

    Args:
        path: The run folder.
        output: Where to: of adapters a folder or a .safetensors file; else a folder.
        merged: Of adapters, write the released weights with them added.
        pipeline: Write the whole released pipeline, not its transformer alone.
        overwrite: Write into a folder that holds files.
        progress: Hears of the weights.

    Returns:
        The file or folder that was written.

    Raises:
        ValueError: If the run has no released weights or no checkpoint, there is something at
            `output`, or nothing to be merged or no pipeline there.
    """
    config = read_config(path)
    if config.pretrained is None:
        raise ValueError(
            f"run {path} must be of a released network (pretrained.folder) to "
            "be exported, got one of its own"
        )
    source, lora = config.pretrained.path, config.pretrained.lora
    require(
        lora is not None or not merged, "merged", "be left out for a run without adapters", merged
    )
    tensors = merged or lora is None
    require(tensors or not pipeline, "pipeline", "go with merged, of a run of adapters", pipeline)
    if pipeline:
        require(is_model_folder(source), "pretrained.folder", "be a pipeline to write one", source)
    if not tensors:
        file = output if output.suffix == ".safetensors" else output / LORA_FILE
        require_target(file)
        require(
            overwrite or not file.exists(),
            f"file {file}",
            "be new (--overwrite replaces it)",
            "one that exists",
        )
        with lock_file(file):
            mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
            tuning, params = _trained(path, config, mesh)
            save_lora(file, params, tuning)
        return file
    require_apart(source, output)
    require_folder(output)
    require_no_run(output)
    require_space(output, size_of(source if pipeline else transformer_folder(source)), "weights")
    with lock_folder(output, "output folder"):
        require_new(output, overwrite)
        with filling(output):
            _export_tensors(path, config, output, pipeline=pipeline, progress=progress)
    return output


def _export_tensors(
    path: Path, config: Config, output: Path, *, pipeline: bool, progress: Progress
) -> None:
    """Write all weights into a folder that is held."""
    assert config.pretrained is not None
    source, lora = config.pretrained.path, config.pretrained.lora
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
    tuning, params = _trained(path, config, mesh)
    if lora is None:
        loaded = _whole(source, tuning, params, mesh, progress)
    else:
        loaded = _merged(source, tuning, params, mesh, progress)
    if pipeline:
        parts = {"transformer": loaded}
        save_model(open_model(source), output, parts, overwrite=True, progress=progress)
    else:
        save_component(transformer_folder(source), output, loaded, progress=progress)


def _trained(path: Path, config: Config, mesh: Mesh) -> tuple[Tuning, Params]:
    """What learned, as its average is."""
    tuning = build(config, *read_model(path)).tuning
    assert tuning is not None
    like = jax.eval_shape(tuning.net.init, jax.random.key(0))
    like = laid_out(like, mesh, tuning.net.tensor_axes)
    return tuning, restore_ema(RunFolder(path).checkpoints, like)[0]


def _merged(source: Path, tuning: Tuning, params: Params, mesh: Mesh, progress: Progress) -> Loaded:
    with (
        tempfile.TemporaryDirectory() as folder,
        at_stop(partial(shutil.rmtree, folder, ignore_errors=True)),
    ):
        file = Path(folder) / LORA_FILE
        save_lora(file, params, tuning)
        where = transformer_folder(source)
        return load_component(where, mesh=mesh, lora=file, progress=progress)


def _whole(source: Path, tuning: Tuning, params: Params, mesh: Mesh, progress: Progress) -> Loaded:
    """All weights of a network that learned itself, in the types of its files."""
    where = transformer_folder(source)
    rest = tuning.load(source, tuning.frozen(mesh), dtype=tuning.dtype, progress=progress)
    views, leaves = flatten_dict(tuning.views), flatten_dict(combine(params, rest))
    with TensorFiles(find_files(where)) as files:
        cast: dict[str, Any] = {
            name: leaf.astype(dtype_of(files, views[name])) for name, leaf in leaves.items()
        }
    return Loaded(make_component(read_about(where / "config.json")), unflatten_dict(cast))
