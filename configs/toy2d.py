"""Flow matching on eight Gaussians in the plane, which trains in seconds.

fmjax train configs/toy2d.py
fmjax train configs/toy2d.py --data.name spirals --run runs/spirals
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
    """Return an unconditional experiment with an MLP."""
    return Config(
        name="toy2d",
        data=ToyData("eight_gaussians"),
        network=MLPConfig(width=128, num_layers=3, unroll_layers=True),
        loss=LossConfig(label_drop=0.0, stratified=True),
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=100),
        training=TrainingConfig(
            num_steps=4_000, batch_size=512, ema_decay=0.999, log_every=100, checkpoint_every=1_000
        ),
        sampling=Sampling.of(num_samples=2_000, batch_size=2_000, solver="rk4", num_steps=32),
        evaluation=EvaluationConfig(num_samples=10_000),
    )
