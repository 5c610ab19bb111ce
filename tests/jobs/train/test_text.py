"""End-to-end test of training a text-conditional model on arrays."""

import numpy as np
import pytest

from fmjax._arrays import TextShape
from fmjax.cli import main
from fmjax.runs.folder import read_model

pytestmark = pytest.mark.slow

CONFIG = """
from fmjax.config import *

def get_config():
    return Config(
        name="text", data=ArrayData({folder!r}, event_shape=(8, 8, 4), text=TextShape(4, 8, 6)),
        network=FluxConfig(2, 2, 16, 1, 1, (4, 6, 6)), mesh=MeshConfig(1, 4, 2),
        training=TrainingConfig(num_steps=3, batch_size=8, log_every=1),
    )
"""


def test_tiny_flux_trains_on_arrays_of_latents_and_text(tmp_path, monkeypatch, capsys):
    rng, num = np.random.default_rng(0), 16
    for name, shape in {"x": (8, 8, 4), "text": (4, 8), "pooled": (6,)}.items():
        np.save(tmp_path / f"train_{name}.npy", rng.standard_normal((num, *shape), np.float32))
    (tmp_path / "text.py").write_text(CONFIG.format(folder=str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        main(["train", "text.py", "--run", "run"])
    assert exit_info.value.code == 0, capsys.readouterr().err
    assert "no samples are generated, because they need prompts" in capsys.readouterr().out
    assert read_model(tmp_path / "run") == ((8, 8, 4), TextShape(4, 8, 6))
    assert (tmp_path / "run/checkpoints/3").is_dir()
    with pytest.raises(SystemExit):
        main(["sample", "run"])
    assert "must hold an unconditional model or one conditioned" in capsys.readouterr().err
