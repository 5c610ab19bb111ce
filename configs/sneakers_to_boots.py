"""Transport from sneakers to ankle boots of Fashion-MNIST, and its reflow.

fmjax train configs/sneakers_to_boots.py
fmjax reflow runs/sneakers_to_boots --reflow.num-pairs 6000 --reflow.sampling.num-steps 8

The report of each run shows every boot below the sneaker it was generated from, the straightness of
the trajectories and the transport cost. The dataset has 6,000 sneakers, which limits the number of
pairs. Each training takes about six minutes on two CPU cores. docs/few_steps.md has results and a
picture.
"""

from fmjax.config import (
    Config,
    DiTConfig,
    EvaluationConfig,
    IdxData,
    LossConfig,
    OptimizerConfig,
    Sampling,
    TrainingConfig,
)

SNEAKER, ANKLE_BOOT = 7, 9


def get_config() -> Config:
    """Return an unconditional experiment with a small DiT, from noisy sneakers to ankle boots."""
    return Config(
        name="sneakers_to_boots",
        data=IdxData("fashion_mnist", classes=(ANKLE_BOOT,)),
        source=IdxData("fashion_mnist", classes=(SNEAKER,)),
        source_noise=0.5,
        conditional=False,
        network=DiTConfig(patch_size=4, width=96, num_layers=3, num_heads=4, unroll_layers=True),
        loss=LossConfig(label_drop=0.0, stratified=True),
        optimizer=OptimizerConfig(
            name="muon", learning_rate=4e-3, schedule="cosine", warmup_steps=100
        ),
        training=TrainingConfig(
            num_steps=1_000, batch_size=128, ema_decay=0.998, log_every=50, checkpoint_every=500
        ),
        sampling=Sampling.of(num_samples=36, solver="heun", num_steps=16),
        evaluation=EvaluationConfig(num_samples=1_000, num_trajectories=256),
    )
