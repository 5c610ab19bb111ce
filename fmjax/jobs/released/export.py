"""Export the weights of a run of a released network in the format of diffusers."""

import shutil
import tempfile
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from fmjax._arrays import Params
from fmjax._checks import require
from fmjax._files import require_folder, require_outside, require_space, require_target, size_of
from fmjax._locks import lock_file, lock_folder
from fmjax._progress import Progress, Silent
from fmjax._signals import at_stop
from fmjax._trees import combine, flatten_dict, unflatten_dict
from fmjax.config import Config, build
from fmjax.pretrained.components import Loaded, load_component, make_component
from fmjax.pretrained.config_files import read_config_json
from fmjax.pretrained.files import TensorFiles, find_files
from fmjax.pretrained.folder import is_model_folder, open_model, save_component, save_model
from fmjax.pretrained.lora.files import LORA_FILE
from fmjax.pretrained.tuning import Tuning, save_lora, transformer_folder
from fmjax.pretrained.weights import dtype_of, mark_unfinished, require_new
from fmjax.runs.folder import RunFolder, read_config, read_model, require_no_run
from fmjax.sharding import MeshConfig, make_mesh, with_shardings
from fmjax.training import restore_ema


def export_run(
    folder: Path,
    output: Path,
    *,
    merged: bool = False,
    pipeline: bool = False,
    overwrite: bool = False,
    progress: Progress = Silent(),
) -> Path:
    """Write the averaged (EMA) weights of a run of a released network.

    The weights have the data types of the released weights. Weights that were not trained are
    byte-for-byte equal to the released weights.

    Args:
        folder: The run folder.
        output: The output folder; for LoRA adapters, a folder or a .safetensors file.
        merged: Whether to merge LoRA adapters into the released weights and write those.
        pipeline: Whether to write the entire pipeline instead of its transformer only.
        overwrite: Whether to replace existing files.
        progress: Receives progress reports.

    Returns:
        The file or folder that was written.

    Raises:
        ValueError: If the run has no released weights or no checkpoint, `output` exists, `merged`
            is set for a run without adapters, or the released model is not a pipeline.
    """
    config = read_config(folder)
    if config.pretrained is None:
        raise ValueError(
            f"run {folder} must start from a released network (pretrained.folder) to "
            "be exported, got a run without pretrained.folder"
        )
    released, lora = config.pretrained.root, config.pretrained.lora
    require(
        lora is not None or not merged, "merged", "be left out for a run without adapters", merged
    )
    all_weights = merged or lora is None
    rule = "be combined with merged for a run of adapters"
    require(all_weights or not pipeline, "pipeline", rule, pipeline)
    if pipeline:
        rule = "be a pipeline to write a pipeline"
        require(is_model_folder(released), "pretrained.folder", rule, released)
    if not all_weights:
        file = output if output.suffix == ".safetensors" else output / LORA_FILE
        require_target(file)
        require(
            overwrite or not file.exists(),
            f"file {file}",
            "be new (--overwrite replaces it)",
            "an existing file",
        )
        with lock_file(file):
            mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
            tuning, params = _restore(folder, config, mesh)
            save_lora(file, params, tuning)
        return file
    require_outside(output, released, "folder")
    require_folder(output)
    require_no_run(output)
    require_space(
        output, size_of(released if pipeline else transformer_folder(released)), "weights"
    )
    with lock_folder(output, "output folder"):
        require_new(output, overwrite)
        with mark_unfinished(output):
            _export_weights(folder, config, output, pipeline=pipeline, progress=progress)
    return output


def _export_weights(
    folder: Path, config: Config, output: Path, *, pipeline: bool, progress: Progress
) -> None:
    """Write all weights; the output folder is locked."""
    assert config.pretrained is not None
    released, lora = config.pretrained.root, config.pretrained.lora
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
    tuning, params = _restore(folder, config, mesh)
    if lora is None:
        loaded = _combine_with_frozen(released, tuning, params, mesh, progress)
    else:
        loaded = _merge_adapters(released, tuning, params, mesh, progress)
    if pipeline:
        parts = {"transformer": loaded}
        save_model(open_model(released), output, parts, overwrite=True, progress=progress)
    else:
        save_component(transformer_folder(released), output, loaded, progress=progress)


def _restore(folder: Path, config: Config, mesh: Mesh) -> tuple[Tuning, Params]:
    """Restore the averaged weights that were trained."""
    tuning = build(config, *read_model(folder)).tuning
    assert tuning is not None
    like = jax.eval_shape(tuning.net.init, jax.random.key(0))
    like = with_shardings(like, mesh, tuning.net.tensor_axes)
    return tuning, restore_ema(RunFolder(folder).checkpoints, like)[0]


def _merge_adapters(
    released: Path, tuning: Tuning, params: Params, mesh: Mesh, progress: Progress
) -> Loaded:
    """Load the released transformer with the adapters `params` merged into its weights."""
    with (
        tempfile.TemporaryDirectory() as temporary,
        at_stop(partial(shutil.rmtree, temporary, ignore_errors=True)),
    ):
        file = Path(temporary) / LORA_FILE
        save_lora(file, params, tuning)
        folder = transformer_folder(released)
        return load_component(folder, mesh=mesh, lora=file, progress=progress)


def _combine_with_frozen(
    released: Path, tuning: Tuning, params: Params, mesh: Mesh, progress: Progress
) -> Loaded:
    """Combine trained and frozen weights, in the data types of the released files."""
    folder = transformer_folder(released)
    frozen = tuning.load(released, tuning.frozen(mesh), dtype=tuning.dtype, progress=progress)
    layouts, leaves = flatten_dict(tuning.layouts), flatten_dict(combine(params, frozen))
    with TensorFiles(find_files(folder)) as files:
        cast = {name: leaf.astype(dtype_of(files, layouts[name])) for name, leaf in leaves.items()}
    return Loaded(make_component(read_config_json(folder / "config.json")), unflatten_dict(cast))
