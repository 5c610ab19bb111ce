r"""FLUX.1's network, 11.9 billion parameters, on latents of 1024x1024 images with their captions.

    fmjax plan configs/flux_dev.py --topology v5e:16x16
    fmjax encode FLUX.1-dev images --output latents
    fmjax train configs/flux_dev.py --data.folder latents --pretrained.folder FLUX.1-dev
    fmjax export runs/flux_dev --pipeline --output mine
    fmjax generate mine "a red fox in the snow"

The network starts anew; the released folder says its sizes, and the exported one has its encoders,
autoencoder and scheduler. The folder of the data holds latents of FLUX's autoencoder, less 0.1159,
times 0.3611, what T5-XXL's encoder makes of the captions, and CLIP-L's pooled output.

Recipe of Esser et al. 2024, arXiv:2403.03206, for 1024x1024: linear path, velocity prediction,
logit-normal times, shifted by 3 towards the noise. It has not been trained to a figure.
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
    SamplingConfig,
    Shifted,
    TextPart,
    TextShape,
    TrainingConfig,
)

# Of 512 tokens; T5's are the tokens, CLIP's the pooled vector.
TEXT = TextShape(
    512,
    4096,
    768,
    (TextPart((0, 0), (0, 0), (0, 768)), TextPart((0, 512), (0, 4096), (0, 0))),
)


def get_config() -> Config:
    """FLUX.1-dev's sizes, with all devices sharing one copy of the weights."""
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
        sampling=SamplingConfig(
            solver="euler", num_steps=28, grid="shifted", shift=3.0, batch_size=16
        ),
    )
