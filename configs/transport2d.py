"""Transport from eight Gaussians to two moons, and its reflow to straight trajectories.

fmjax train configs/transport2d.py
fmjax reflow runs/transport2d

The report of each run plots the trajectories and their straightness.
"""

from fmjax.config import (
    Config,
    EvaluationConfig,
    LossConfig,
    MLPConfig,
    OptimizerConfig,
    Sampling,
    ToyData,
    TrainingConfig,
)


def get_config() -> Config:
    """Return an unconditional experiment with an MLP, between two datasets of points."""
    return Config(
        name="transport2d",
        data=ToyData("moons"),
        source=ToyData("eight_gaussians"),
        conditional=False,
        network=MLPConfig(width=128, num_layers=3, unroll_layers=True),
        loss=LossConfig(label_drop=0.0, stratified=True),
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=100),
        training=TrainingConfig(
            num_steps=2_000, batch_size=512, ema_decay=0.999, log_every=100, checkpoint_every=1_000
        ),
        sampling=Sampling.of(num_samples=2_000, batch_size=2_000, solver="rk4", num_steps=16),
        evaluation=EvaluationConfig(num_samples=10_000, num_trajectories=256),
    )
