r"""Finetune FLUX.1 with LoRA adapters on latents of 1024x1024 images with captions.

    fmjax plan configs/finetune_flux.py --topology v5e:2x4
    fmjax encode FLUX.1-dev images --output latents
    fmjax train configs/finetune_flux.py --pretrained.folder FLUX.1-dev --data.folder latents
    fmjax export runs/finetune_flux --output lora

`pretrained.folder` is the released model in diffusers format, or only its transformer, and sets the
sizes of the network. The export is a LoRA file for `pipeline.load_lora_weights("lora")` of
diffusers.

The released weights are frozen, in bfloat16. In training, the guidance input of the network is 1,
for which its velocity field is that of the data. The adapters are on all attention layers. We have
not run this training to the end.
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
    Sampling,
    Shifted,
    TextShape,
    TrainingConfig,
)


def get_config() -> Config:
    """Return an experiment with adapters of rank 16 and weights sharded over all devices."""
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
        sampling=Sampling.of(solver="euler", num_steps=28, grid="shifted", shift=3.0, batch_size=8),
    )
