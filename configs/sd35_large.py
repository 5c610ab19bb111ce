r"""Train SD3.5 large's network of 8 billion parameters on latents of 1024x1024 images.

    fmjax plan configs/sd35_large.py --topology v5e:16x16
    fmjax encode stable-diffusion-3.5-large images --output latents
    fmjax train configs/sd35_large.py --data.folder latents \
        --pretrained.folder stable-diffusion-3.5-large
    fmjax export runs/sd35_large --pipeline --output mine
    fmjax generate mine "a red fox in the snow"

The network is newly initialized; the released folder sets its sizes, and the export copies the text
encoders, autoencoder and scheduler from it. The data folder holds latents of SD3's autoencoder and
captions encoded by its three text encoders: 77 tokens with the channels of both CLIP encoders, 256
tokens of T5-XXL, and the pooled vectors of both CLIP encoders.

Recipe of Esser et al. 2024, arXiv:2403.03206, for 1024x1024: linear path, velocity prediction,
logit-normal times with a shift of 3 towards the noise, normalized queries and keys. Each text
encoder is dropped separately with probability 0.464, so that one example in ten has no text. We
have not run this training to the end.
"""

import dataclasses

from fmjax.config import (
    SD35_LARGE,
    Config,
    EncodedData,
    LogitNormal,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    PretrainedConfig,
    Sampling,
    Shifted,
    TextPart,
    TextShape,
    TrainingConfig,
)

TEXT = TextShape(
    333,
    4096,
    2048,
    (
        TextPart((0, 77), (0, 768), (0, 768)),
        TextPart((0, 77), (768, 2048), (768, 2048)),
        TextPart((77, 333), (0, 4096), (0, 0)),
    ),
)


def get_config() -> Config:
    """Return an experiment with the sizes of SD3.5 large and weights sharded over all devices."""
    return Config(
        name="sd35_large",
        data=EncodedData("latents", event_shape=(128, 128, 16), text=TEXT),
        network=dataclasses.replace(SD35_LARGE, dtype="bfloat16", remat="full"),
        pretrained=PretrainedConfig("stable-diffusion-3.5-large", weights=False),
        loss=LossConfig(density=Shifted(LogitNormal(), 3.0), label_drop=0.0, encoder_drop=0.464),
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="constant", warmup_steps=1_000),
        training=TrainingConfig(
            num_steps=100_000,
            batch_size=256,
            ema_decay=0.9999,
            log_every=10,
            checkpoint_every=1_000,
        ),
        mesh=MeshConfig(data=1, fsdp=-1),
        sampling=Sampling.of(
            solver="euler", num_steps=28, grid="shifted", shift=3.0, guidance=5.0, batch_size=16
        ),
    )
