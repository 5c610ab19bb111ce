r"""Improved MeanFlow on the latents of ImageNet at 256x256: B/2 here, XL/2 by three options.

    fmjax train configs/imagenet256_improved_mean_flow.py --data.folder latents
    fmjax train configs/imagenet256_improved_mean_flow.py --data.folder latents \
        --name imagenet256_improved_mean_flow_xl2 --network.width 1152 --network.num-layers 28 \
        --network.num-heads 16
    fmjax sample runs/imagenet256_improved_mean_flow --num-steps 1 --guidance 3

The folder is that of `imagenet256_sit.py`. After Geng et al. 2025, arXiv:2512.02012: `v` is
regressed along the network's own velocity, and the guidance, its scale from 1 to 8 and its times,
is an input: samples choose it and still take one evaluation. There B/2 reaches an FID of 3.39 with
one evaluation, M/2 2.27, L/2 1.86 and XL/2 1.72 (1.54 with two). It differs from this config in
its networks, which take conditions as tokens where DiT takes them through its norms and give `v` by
a head of its own where here it is the map's at r = t, and in its training, 640 epochs of batches
of 1,024 for B/2. Not trained by us: it takes an accelerator.
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
    SamplingConfig,
    TrainingConfig,
)


def get_config() -> Config:
    """DiT-B/2."""
    return Config(
        name="imagenet256_improved_mean_flow",
        data=ArrayData("latents", num_classes=1_000, event_shape=(32, 32, 4)),
        network=dataclasses.replace(DIT_B, dtype="bfloat16"),
        loss=MeanFlowConfig(
            improved=True,
            ratio_r_neq_t=0.5,
            guidance=BuiltInGuidance(max_scale=8.0, first=0.5, last=0.5),
            label_drop=0.1,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="constant", b2=0.95, clip_norm=None),
        training=TrainingConfig(
            num_steps=1_200_000,
            batch_size=256,
            ema_decay=0.9999,
            log_every=100,
            checkpoint_every=10_000,
        ),
        mesh=MeshConfig(data=-1, fsdp=1),
        sampling=SamplingConfig(solver="flow_map", num_steps=1, guidance=3.0, batch_size=64),
        compare=CompareConfig(fixed_solvers=("flow_map", "euler"), num_steps=(1, 2, 4, 8)),
        evaluation=EvaluationConfig(num_samples=50_000),
    )
