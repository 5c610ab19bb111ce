r"""Finetune all weights of Stable Diffusion 3.5 medium on latents of 1024x1024 images.

    fmjax plan configs/finetune_sd3.py --topology v5e:4x4
    fmjax encode stable-diffusion-3.5-medium images --output latents
    fmjax train configs/finetune_sd3.py --pretrained.folder stable-diffusion-3.5-medium \
        --data.folder latents
    fmjax export runs/finetune_sd3 --output finetuned

`pretrained.folder` is the released model in diffusers format, or only its transformer, and sets the
sizes of the network, so that SD3 medium and 3.5 large work too. The export is a folder for
`SD3Transformer2DModel.from_pretrained` of diffusers; with `--pipeline`, it is a complete pipeline.

All weights are trained in float32, except the position table. We have not run this training to the
end.
"""

import dataclasses

from fmjax.config import (
    SD35_MEDIUM,
    Config,
    EncodedData,
    LogitNormal,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    PretrainedConfig,
    Sampling,
    Shifted,
    TextShape,
    TrainingConfig,
)


def get_config() -> Config:
    """Return an experiment with SD3.5 medium and weights sharded over all devices."""
    network = dataclasses.replace(SD35_MEDIUM, dtype="bfloat16", remat="full")
    return Config(
        name="finetune_sd3",
        data=EncodedData("latents", event_shape=(128, 128, 16), text=TextShape(333, 4096, 2048)),
        network=network,
        pretrained=PretrainedConfig("stable-diffusion-3.5-medium"),
        loss=LossConfig(density=Shifted(LogitNormal(), 3.0), label_drop=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-5, warmup_steps=500, weight_decay=1e-2),
        training=TrainingConfig(
            num_steps=5_000,
            batch_size=32,
            ema_decay=0.999,
            log_every=10,
            checkpoint_every=500,
        ),
        mesh=MeshConfig(data=1, fsdp=-1),
        sampling=Sampling.of(solver="euler", num_steps=28, grid="shifted", shift=3.0, batch_size=8),
    )
