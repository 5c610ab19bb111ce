r"""Shortcut model on latents of ImageNet 256x256, with DiT-B/2 or, by three options, DiT-XL/2.

    fmjax train configs/imagenet256_shortcut.py --data.folder latents
    fmjax train configs/imagenet256_shortcut.py --data.folder latents \
        --name imagenet256_shortcut_xl2 --network.width 1152 --network.num-layers 28 \
        --network.num-heads 16
    fmjax sample runs/imagenet256_shortcut --num-steps 1
    fmjax sample runs/imagenet256_shortcut --solver euler --num-steps 128 --guidance 1.5

The data folder is that of `imagenet256_sit.py`. Recipe of Frans et al. 2024, arXiv:2410.12557: a
grid of 128 steps; a quarter of the batch trains steps that span 2 to 128 of them, with targets from
the averaged weights (decay 0.999) and a guidance scale of 1.5 for the finest steps; AdamW at 1e-4
with weight decay 0.1. The paper reports FIDs of XL/2 of 10.6 in one step, 7.8 in four and 3.8 in
128 steps. The 128 steps are trained without guidance and are guided in sampling. We have not
trained this config, which needs an accelerator.
"""

import dataclasses

from fmjax.config import (
    DIT_B,
    ArrayData,
    CompareConfig,
    Config,
    EvaluationConfig,
    MeshConfig,
    OptimizerConfig,
    Sampling,
    ShortcutConfig,
    TrainingConfig,
)


def get_config() -> Config:
    """Return the experiment with DiT-B/2."""
    return Config(
        name="imagenet256_shortcut",
        data=ArrayData("latents", num_classes=1_000, event_shape=(32, 32, 4)),
        network=dataclasses.replace(DIT_B, dtype="bfloat16"),
        loss=ShortcutConfig(num_steps=128, bootstrap_ratio=0.25, guidance=1.5, label_drop=0.1),
        optimizer=OptimizerConfig(
            learning_rate=1e-4, schedule="constant", weight_decay=0.1, clip_norm=None
        ),
        training=TrainingConfig(
            num_steps=800_000,
            batch_size=256,
            ema_decay=0.999,
            log_every=100,
            checkpoint_every=10_000,
        ),
        mesh=MeshConfig(data=-1, fsdp=1),
        sampling=Sampling.of(solver="flow_map", num_steps=4, batch_size=64),
        compare=CompareConfig(
            fixed_solvers=("flow_map", "euler"), num_steps=(1, 2, 4, 8, 16, 32, 64, 128)
        ),
        evaluation=EvaluationConfig(num_samples=50_000),
    )
