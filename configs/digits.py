"""Class-conditional flow matching on the 8x8 digits of scikit-learn: a quick start.

fmjax train configs/digits.py

On two CPU cores, training takes 40 s, the entire command with samples, solver comparison and report
1 min 34 s. 355 samples have a Frechet distance of 4.39 to the training set (355 real test images:
2.70).
"""

from fmjax.config import (
    Config,
    DigitsData,
    DiTConfig,
    EvaluationConfig,
    LogitNormal,
    LossConfig,
    OptimizerConfig,
    Sampling,
    TrainingConfig,
)


def get_config() -> Config:
    """Return an experiment with a DiT of 0.33 million parameters and logit-normal times."""
    return Config(
        name="digits",
        data=DigitsData(),
        network=DiTConfig(patch_size=2, width=64, num_layers=4, num_heads=2, unroll_layers=True),
        loss=LossConfig(label_drop=0.1, density=LogitNormal(), stratified=True),
        optimizer=OptimizerConfig(
            name="muon", learning_rate=5e-3, schedule="cosine", warmup_steps=50
        ),
        training=TrainingConfig(
            num_steps=1_000, batch_size=128, ema_decay=0.995, log_every=20, checkpoint_every=250
        ),
        sampling=Sampling.of(
            num_samples=100, solver="heun", num_steps=8, guidance=1.2, batch_size=100
        ),
        evaluation=EvaluationConfig(num_samples=1_797),
    )
