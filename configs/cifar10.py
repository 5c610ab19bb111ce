"""Unconditional flow matching on CIFAR-10 with the UNet of Lipman et al. 2022.

    fmjax train configs/cifar10.py --data.folder cifar-10-batches-bin

Network and optimizer of arXiv:2210.02747, appendix E, table 3: 256 channels, depth 2, multipliers
1 2 2 2, attention at resolution 16, heads of 64 channels, batch size 256, 391,000 training steps,
Adam at 5e-4 with 45,000 warm-up steps, then polynomial decay (here of power one). The paper reports
an FID of 6.35 with 142 network evaluations (OT path).
"""

from fmjax.config import (
    Cifar10Data,
    Config,
    EvaluationConfig,
    LossConfig,
    OptimizerConfig,
    Sampling,
    TrainingConfig,
    UNetConfig,
)


def get_config() -> Config:
    """Return the published experiment at full size, for an accelerator."""
    return Config(
        name="cifar10",
        data=Cifar10Data("cifar-10-batches-bin"),
        conditional=False,
        network=UNetConfig(
            width=256,
            multipliers=(1, 2, 2, 2),
            num_blocks=2,
            attention_resolutions=(16,),
            head_width=64,
            dtype="bfloat16",
        ),
        loss=LossConfig(label_drop=0.0),
        optimizer=OptimizerConfig(
            learning_rate=5e-4, warmup_steps=45_000, schedule="linear", clip_norm=None
        ),
        training=TrainingConfig(
            num_steps=391_000,
            batch_size=256,
            flip=True,
            ema_decay=0.9999,
            log_every=100,
            checkpoint_every=10_000,
        ),
        sampling=Sampling.of(solver="dopri5", rtol=1e-5, atol=1e-5),
        evaluation=EvaluationConfig(num_samples=50_000),
    )
