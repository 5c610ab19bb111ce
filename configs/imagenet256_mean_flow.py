r"""MeanFlow on latents of ImageNet 256x256, with DiT-B/2 or, by its options, DiT-XL/2.

    fmjax train configs/imagenet256_mean_flow.py --data.folder latents
    fmjax train configs/imagenet256_mean_flow.py --data.folder latents \
        --name imagenet256_mean_flow_xl2 --network.width 1152 --network.num-layers 28 \
        --network.num-heads 16 --loss.guidance.scale 2.5 --loss.guidance.mix 0.92 \
        --loss.guidance.first 0.25
    fmjax sample runs/imagenet256_mean_flow --num-steps 1

The data folder is that of `imagenet256_sit.py`. Recipe of Geng et al. 2025, arXiv:2505.13447: both
times from logit-normal(0.4, 1) (-0.4 in the paper, where data are at t = 0), different for a
quarter of the batch, adaptive loss of power 1, Adam at 1e-4, 240 epochs. Guidance is built in: for
B/2 and M/2 a scale of 2.0 (omega 1, kappa 0.5 in the paper) at all times; for L/2 and XL/2 a scale
of 2.5 (omega 0.2, kappa 0.92), except in the fifth (L/2) and the quarter (XL/2) of the times
nearest to noise (table 4). The paper reports FIDs with one network evaluation of 6.17 (B/2), 5.01
(M/2), 3.84 (L/2) and 3.43 (XL/2) (table 2). We have not trained this config, which needs an
accelerator.
"""

import dataclasses

from fmjax.config import (
    DIT_B,
    ArrayData,
    BuiltInGuidance,
    CompareConfig,
    Config,
    EvaluationConfig,
    MeanFlowConfig,
    MeshConfig,
    OptimizerConfig,
    Sampling,
    TrainingConfig,
)


def get_config() -> Config:
    """Return the experiment with DiT-B/2."""
    return Config(
        name="imagenet256_mean_flow",
        data=ArrayData("latents", num_classes=1_000, event_shape=(32, 32, 4)),
        network=dataclasses.replace(DIT_B, dtype="bfloat16"),
        loss=MeanFlowConfig(guidance=BuiltInGuidance(2.0, mix=0.5), label_drop=0.1),
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="constant", b2=0.95, clip_norm=None),
        training=TrainingConfig(
            num_steps=1_200_000,
            batch_size=256,
            ema_decay=0.9999,
            log_every=100,
            checkpoint_every=10_000,
        ),
        mesh=MeshConfig(data=-1, fsdp=1),
        sampling=Sampling.of(solver="flow_map", num_steps=1, batch_size=64),
        compare=CompareConfig(fixed_solvers=("flow_map", "euler"), num_steps=(1, 2, 4, 8)),
        evaluation=EvaluationConfig(num_samples=50_000),
    )
