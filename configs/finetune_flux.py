r"""LoRA adapters of FLUX.1, trained on latents of 1024x1024 images with their captions.

    fmjax plan configs/finetune_flux.py --topology v5e:2x4
    fmjax encode FLUX.1-dev images --output latents
    fmjax train configs/finetune_flux.py --pretrained.folder FLUX.1-dev --data.folder latents
    fmjax export runs/finetune_flux --output lora

`pretrained.folder` is the released model as diffusers has it, or its transformer alone; the network
is the one in it. The export is a file that `pipeline.load_lora_weights("lora")` of diffusers reads.

The released weights stay as they are, in bfloat16. While it learns, the network is given a guidance
scale of 1, at which its field is that of the images themselves. The layers are all of attention.
It has not been trained to a figure.
"""

from fmjax.config import (
    Config,
    EncodedData,
    FluxConfig,
    LogitNormal,
    LoRAConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    PretrainedConfig,
    SamplingConfig,
    Shifted,
    TextShape,
    TrainingConfig,
)


def get_config() -> Config:
    """Adapters of rank 16 on all attention, with all devices sharing one copy of the weights."""
    return Config(
        name="finetune_flux",
        data=EncodedData("latents", event_shape=(128, 128, 16), text=TextShape(512, 4096, 768)),
        network=FluxConfig(guidance=1.0, dtype="bfloat16", remat="full"),
        pretrained=PretrainedConfig("FLUX.1-dev", lora=LoRAConfig(rank=16, alpha=16.0)),
        loss=LossConfig(density=Shifted(LogitNormal(), 3.0), label_drop=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=100),
        training=TrainingConfig(
            num_steps=2_000,
            batch_size=8,
            ema_decay=0.99,
            log_every=10,
            checkpoint_every=250,
        ),
        mesh=MeshConfig(data=1, fsdp=-1),
        sampling=SamplingConfig(
            solver="euler", num_steps=28, grid="shifted", shift=3.0, batch_size=8
        ),
    )
