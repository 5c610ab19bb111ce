"""Fixtures of the fuzz cases: small runs, data sets and records, built once by the library."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = """
from fmjax.config import *
from fmjax.data import *
from fmjax.networks import MLPConfig

def get_config():
    return Config(
        name="{name}", data={data}, network=MLPConfig(width=8, num_layers=1),
        training=TrainingConfig(batch_size=8, num_steps=2, log_every=1),
        sampling=Sampling.of(num_samples=8, batch_size=8, solver="heun", num_steps=2),
        compare=CompareConfig(num_samples=4, num_steps=(2,), tolerances=(1e-2,),
                              fixed_solvers=("euler",), adaptive_solvers=("tsit5",)),
        evaluation=EvaluationConfig(num_samples=16, num_projections=4, num_trajectories=4),
{extra}
    )
"""
TOY = 'ToyData("moons", num_examples=32)'


def config_text(name: str, data: str = TOY, extra: str = "") -> str:
    """Text of a config file that trains within seconds."""
    return CONFIG.format(name=name, data=data, extra=extra)


def build(folder: Path) -> Path:
    """Build all fixtures in `folder`, unless a finished build exists."""
    if (folder / "done").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _data(folder)
    _runs(folder)
    _records(folder / "records")
    (folder / "done").touch()
    return folder


def _data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    (folder / "arrays").mkdir()
    for split in ("train", "test"):
        x = rng.uniform(-1, 1, (16, 4, 4, 1)).astype(np.float32)
        np.savez(folder / "arrays" / f"{split}.npz", x=x, labels=rng.integers(0, 3, 16))
    (folder / "mapped").mkdir()
    np.save(folder / "mapped" / "train_x.npy", rng.uniform(-1, 1, (16, 2)).astype(np.float32))
    np.save(folder / "mapped" / "train_labels.npy", np.arange(16) % 3)
    (folder / "images").mkdir()
    for number in range(8):
        pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        (folder / "images" / f"{number}.txt").write_text(f"a photo of cat {number}")
    (folder / "idx").mkdir()
    import gzip

    for stem, shape in (("images", (16, 28, 28)), ("labels", (16,))):
        for split in ("train", "t10k"):
            sizes = b"".join(size.to_bytes(4, "big") for size in shape)
            header = bytes([0, 0, 8, len(shape)]) + sizes
            name = f"{split}-{stem}-idx{len(shape)}-ubyte.gz"
            content = rng.integers(0, 10, shape, dtype=np.uint8).tobytes()
            (folder / "idx" / name).write_bytes(gzip.compress(header + content, mtime=0))


def _runs(folder: Path) -> None:
    from fmjax._progress import Silent
    from fmjax.cli.main import main
    from fmjax.jobs.train.train import train_folder
    from fmjax.runs.load_config import load_config

    def run_command(*arguments: object) -> None:
        with pytest.raises(SystemExit) as exit_info:
            main([str(argument) for argument in arguments])
        assert exit_info.value.code in (0, None), arguments

    (folder / "toy.py").write_text(config_text("toy"))
    run_command("train", folder / "toy.py", "--run", folder / "toy")
    run_command("likelihood", folder / "toy", "--num-examples", 8)
    data = f"ArrayData({str(folder / 'arrays')!r}, num_classes=3)"
    (folder / "arrays.py").write_text(config_text("arrays", data))
    train_folder(load_config(folder / "arrays.py"), folder / "classes", progress=Silent())


def _records(folder: Path) -> None:
    from fmjax.data import RecordField, RecordManifest, prepare_records, write_shard

    fields = (RecordField("x", "float32", (2,)), RecordField("label", "int32"))
    manifest = RecordManifest(fields, 10, 4, {"made": "here"})
    prepare_records(folder, manifest)
    rng = np.random.default_rng(0)
    for shard in range(manifest.num_shards):
        num_examples = len(manifest.examples(shard))
        x = rng.normal(size=(num_examples, 2)).astype(np.float32)
        arrays = {"x": x, "label": np.zeros(num_examples, np.int32)}
        write_shard(folder, manifest, shard, arrays)


def copy(fixtures: Path, name: str, folder: Path, to: str | None = None) -> Path:
    """Copy a golden file or fixture into `folder`, where the case may damage it."""
    source = (GOLDEN if (GOLDEN / name).exists() else fixtures) / name
    target = folder / (to or name)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("io.npz", "out.npz"))
    else:
        shutil.copy(source, target)
    return target
