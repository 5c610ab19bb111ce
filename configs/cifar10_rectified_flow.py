"""Rectified flow on CIFAR-10, unconditional, then reflow and one-step distillation.

    fmjax train configs/cifar10_rectified_flow.py --data.folder cifar-10-batches-bin
    fmjax reflow runs/cifar10_rectified_flow --reflow.num-pairs 1000000 --training.num-steps 300000
    fmjax reflow runs/cifar10_rectified_flow_2rf --reflow.num-pairs 1000000 --distill

Figures of Liu et al. 2022, arXiv:2209.03003, for the 1-, 2- and 3-rectified flow: FID 2.58, 3.36
and 3.96 by RK45 (127, 110 and 104 evaluations), 378, 12.2 and 8.15 by one Euler step, 6.18, 4.85
and 5.21 by one step distilled. The UNet here is that of `cifar10.py`; theirs is the DDPM++ of Song
et al. 2021 with dropout. Their reflow takes uniform times, which `reflow` takes with
`--loss.density.a 0.001` (they are U-shaped without), and they distil by LPIPS, a distance of
features, where here it is the squared error. Not trained by us: it takes an accelerator.
"""

import dataclasses

from fmjax.config import (
    Cifar10Data,
    Config,
    EvaluationConfig,
    LossConfig,
    OptimizerConfig,
    SamplingConfig,
    TrainingConfig,
    UNetConfig,
)


def get_config() -> Config:
    """The first flow, at full size."""
    sampling = SamplingConfig(solver="dopri5", rtol=1e-5, atol=1e-5)
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
