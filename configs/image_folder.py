r"""Class-conditional flow matching on the user's own images, one sub-folder per class.

fmjax data configs/image_folder.py --data.folder images
fmjax train configs/image_folder.py --data.folder images

The folder holds `cats/1.jpg`, `cats/2.jpg`, `dogs/1.jpg` and so on. Without sub-folders, the model
is unconditional. The network is small, for a first look on a CPU. On a GPU, a larger one is better:

fmjax train configs/image_folder.py --data.folder images --network.patch-size 4 \
    --network.width 384 --network.num-layers 12 --network.num-heads 6 --training.num-steps 50000
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
    Sampling,
    TrainingConfig,
)


def get_config() -> Config:
    """Return an experiment with a DiT of 1.32 million parameters on 8x8 patches."""
    return Config(
        name="image_folder",
        data=ImageFolder("images", size=64),
        network=DiTConfig(patch_size=8, width=128, num_layers=4, num_heads=4, unroll_layers=True),
        loss=LossConfig(label_drop=0.1, density=LogitNormal(), stratified=True),
        optimizer=OptimizerConfig(
            name="muon", learning_rate=3e-3, schedule="cosine", warmup_steps=50
        ),
        training=TrainingConfig(
            num_steps=1_000,
            batch_size=64,
            flip=True,
            ema_decay=0.995,
            log_every=50,
            checkpoint_every=250,
        ),
        sampling=Sampling.of(
            num_samples=64, solver="heun", num_steps=16, guidance=1.5, batch_size=64
        ),
        compare=CompareConfig(num_samples=16),
        evaluation=EvaluationConfig(num_samples=1_000),
    )
