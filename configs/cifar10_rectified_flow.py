"""Unconditional rectified flow on CIFAR-10, then reflow and one-step distillation.

    fmjax train configs/cifar10_rectified_flow.py --data.folder cifar-10-batches-bin
    fmjax reflow runs/cifar10_rectified_flow --reflow.num-pairs 1000000 --training.num-steps 300000
    fmjax reflow runs/cifar10_rectified_flow_2rf --reflow.num-pairs 1000000 --distill

Liu et al. 2022, arXiv:2209.03003, report for the 1-, 2- and 3-rectified flow FIDs of 2.58, 3.36 and
3.96 with RK45 (127, 110 and 104 network evaluations), 378, 12.2 and 8.15 with one Euler step, and
6.18, 4.85 and 5.21 with one distilled step. Differences from the paper: the network is the UNet of
`cifar10.py`, theirs the DDPM++ of Song et al. 2021 with dropout. Their reflow uses uniform times,
for which `reflow` needs `--loss.density.a 0.001` (the default times are U-shaped). They distill
with LPIPS, a distance of features, this library with the squared error. We have not trained this
config, which needs an accelerator.
"""

import dataclasses

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
    """Return the experiment of the first flow, at full size."""
    sampling = Sampling.of(solver="dopri5", rtol=1e-5, atol=1e-5)
    return Config(
        name="cifar10_rectified_flow",
        data=Cifar10Data("cifar-10-batches-bin"),
        conditional=False,
        network=UNetConfig(
            width=128,
            multipliers=(1, 2, 2, 2),
            num_blocks=4,
            attention_resolutions=(16,),
            head_width=64,
            dtype="bfloat16",
        ),
        loss=LossConfig(label_drop=0.0),
        optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=5_000, schedule="constant"),
        training=TrainingConfig(
            num_steps=800_000,
            batch_size=128,
            flip=True,
            ema_decay=0.999999,
            log_every=100,
            checkpoint_every=10_000,
        ),
        sampling=dataclasses.replace(sampling, num_samples=100),
        evaluation=EvaluationConfig(num_samples=50_000),
    )
