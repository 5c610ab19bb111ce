r"""Train FLUX.1's network of 11.9 billion parameters on latents of 1024x1024 images with captions.

    fmjax plan configs/flux_dev.py --topology v5e:16x16
    fmjax encode FLUX.1-dev images --output latents
    fmjax train configs/flux_dev.py --data.folder latents --pretrained.folder FLUX.1-dev
    fmjax export runs/flux_dev --pipeline --output mine
    fmjax generate mine "a red fox in the snow"

The network is newly initialized; the released folder sets its sizes, and the export copies the text
encoders, autoencoder and scheduler from it. The data folder holds latents of FLUX's autoencoder,
minus 0.1159 and times 0.3611, encoded captions of T5-XXL, and pooled outputs of CLIP-L.

Recipe of Esser et al. 2024, arXiv:2403.03206, for 1024x1024: linear path, velocity prediction,
logit-normal times with a shift of 3 towards the noise. We have not run this training to the end.
"""

from fmjax.config import (
    Config,
    EncodedData,
    FluxConfig,
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

# 512 tokens; T5 gives the tokens, CLIP the pooled vector.
TEXT = TextShape(
    512,
    4096,
    768,
    (TextPart((0, 0), (0, 0), (0, 768)), TextPart((0, 512), (0, 4096), (0, 0))),
)


def get_config() -> Config:
    """Return an experiment with the sizes of FLUX.1-dev and weights sharded over all devices."""
    return Config(
        name="flux_dev",
        data=EncodedData("latents", event_shape=(128, 128, 16), text=TEXT),
        network=FluxConfig(dtype="bfloat16", remat="full"),
        pretrained=PretrainedConfig("FLUX.1-dev", weights=False),
        loss=LossConfig(density=Shifted(LogitNormal(), 3.0), label_drop=0.1),
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
            solver="euler", num_steps=28, grid="shifted", shift=3.0, batch_size=16
        ),
    )
