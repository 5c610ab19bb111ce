"""Class-conditional flow matching on the user's own images, one sub-folder per class.

fmjax data configs/image_folder.py --data.folder images
fmjax train configs/image_folder.py --data.folder images

The folder holds `cats/1.jpg`, `cats/2.jpg`, `dogs/1.jpg` and so on. Without sub-folders, the model
is unconditional. The sizes suit some hundred to some ten thousand images of 64x64 pixels. On two CPU
cores, a training step takes SECONDS s; a GPU is recommended.
"""

from fmjax.config import (
    CompareConfig,
    Config,
    DiTConfig,
    EvaluationConfig,
    ImageFolder,
    LogitNormal,
    LossConfig,
    OptimizerConfig,
    SamplingConfig,
    TrainingConfig,
)


def get_config() -> Config:
    """Return an experiment with a DiT of 4.9 million parameters on 4x4 patches."""
    return Config(
        name="image_folder",
        data=ImageFolder("images", size=64),
        network=DiTConfig(patch_size=4, width=192, num_layers=8, num_heads=4),
        loss=LossConfig(label_drop=0.1, density=LogitNormal(), stratified=True),
        optimizer=OptimizerConfig(
            name="muon", learning_rate=3e-3, schedule="cosine", warmup_steps=200
        ),
        training=TrainingConfig(
            num_steps=20_000,
            batch_size=64,
            flip=True,
            ema_decay=0.999,
            log_every=50,
            checkpoint_every=1_000,
        ),
        sampling=SamplingConfig(
            num_samples=64, solver="heun", num_steps=16, guidance=1.5, batch_size=64
        ),
        compare=CompareConfig(num_samples=16),
        evaluation=EvaluationConfig(num_samples=1_000),
    )
