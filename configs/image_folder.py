r"""Class-conditional flow matching on the user's own images, one sub-folder per class.

fmjax data configs/image_folder.py --data.folder images
fmjax train configs/image_folder.py --data.folder images

The folder holds `cats/1.jpg`, `cats/2.jpg`, `dogs/1.jpg` and so on. Without sub-folders, the model
is unconditional. The network is small, for a first look on two CPU cores in minutes. It predicts
the data, because a token has fewer channels than its patch has noise values. On a GPU, a larger
network is better:

fmjax train configs/image_folder.py --data.folder images --network.patch-size 4 \
    --network.width 384 --network.num-layers 12 --network.num-heads 6 --training.num-steps 50000
"""

from fmjax.config import (
    AffinePath,
    CompareConfig,
    Config,
    DiTConfig,
    EvaluationConfig,
    ImageFolder,
    LogitNormal,
    LossConfig,
    OptimizerConfig,
    Prediction,
    Sampling,
    TrainingConfig,
)


def get_config() -> Config:
    """Return an experiment with a DiT of 1.32 million parameters on 8x8 patches."""
    return Config(
        name="image_folder",
        data=ImageFolder("images", size=64),
        network=DiTConfig(patch_size=8, width=128, num_layers=4, num_heads=4, unroll_layers=True),
        path=AffinePath(min_divisor=0.05),
        loss=LossConfig(
            prediction=Prediction.X1,
            label_drop=0.1,
            density=LogitNormal(-0.8, 0.8),
            stratified=True,
        ),
        optimizer=OptimizerConfig(
            name="muon", learning_rate=3e-3, schedule="cosine", warmup_steps=50
        ),
        training=TrainingConfig(
            num_steps=600,
            batch_size=32,
            flip=True,
            ema_decay=0.99,
            log_every=50,
            checkpoint_every=150,
        ),
        sampling=Sampling.of(
            num_samples=64, solver="heun", num_steps=10, guidance=1.5, batch_size=64
        ),
        compare=CompareConfig(num_samples=16, num_steps=(2, 4, 8, 16), tolerances=(1e-2, 1e-3)),
        evaluation=EvaluationConfig(num_samples=256, num_trajectories=64, classifier=False),
    )
