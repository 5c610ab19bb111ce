"""From eight Gaussians to two moons: transport between data, whose paths a reflow untangles.

fmjax train configs/transport2d.py
fmjax reflow runs/transport2d

The page of either run draws its paths, and says how straight they are.
"""

from fmjax.config import (
    Config,
    EvaluationConfig,
    LossConfig,
    MLPConfig,
    OptimizerConfig,
    SamplingConfig,
    ToyData,
    TrainingConfig,
)


def get_config() -> Config:
    """An MLP, unconditional, linear path between points of both."""
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
        sampling=SamplingConfig(num_samples=2_000, batch_size=2_000, solver="rk4", num_steps=16),
        evaluation=EvaluationConfig(num_samples=10_000, num_paths=256),
    )
