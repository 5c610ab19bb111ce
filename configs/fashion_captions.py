"""Text to image on Fashion-MNIST, with captions made from the classes and a trained text encoder.

fmjax train configs/fashion_captions.py
fmjax sample runs/fashion_captions --prompts "a pair of trousers" "a photo of a winter boot"

On two CPU cores, the entire command takes 20 minutes, including the classifier of the evaluation.
The classifier recognizes 90.75 % of 2,000 samples as the class of their prompt (accuracy on real
test images: 92.48 %). Their Frechet distance is 7.79 (2,000 real test images: 1.24). With twice as
many steps, these values are 93.6 % and 5.45.
"""

from fmjax.config import (
    CaptionedClasses,
    CompareConfig,
    Config,
    EvaluationConfig,
    LogitNormal,
    LossConfig,
    MMDiTConfig,
    OptimizerConfig,
    Sampling,
    TextEncoderConfig,
    TrainingConfig,
)

PROMPTS = (
    "a t-shirt",
    "a photo of trousers",
    "a sweater",
    "a picture of a long dress",
    "a coat",
    "a summer shoe",
    "a shirt with buttons",
    "a running shoe on a black background",
    "a photo of a handbag",
    "a winter boot",
)


def get_config() -> Config:
    """Return an experiment with an MM-DiT of 2.2 million parameters on 4x4 patches."""
    return Config(
        name="fashion_captions",
        data=CaptionedClasses(),
        network=MMDiTConfig(
            patch_size=4,
            num_heads=4,
            head_width=32,
            num_layers=4,
            qk_norm=True,
            unroll_layers=True,
        ),
        text_encoder=TextEncoderConfig(width=64, num_layers=1, num_heads=4),
        loss=LossConfig(label_drop=0.1, density=LogitNormal(), stratified=True),
        optimizer=OptimizerConfig(
            name="muon", learning_rate=4e-3, schedule="cosine", warmup_steps=100
        ),
        training=TrainingConfig(
            num_steps=1_200,
            batch_size=128,
            accumulation_steps=4,
            ema_decay=0.996,
            log_every=50,
            checkpoint_every=400,
        ),
        sampling=Sampling.of(
            num_samples=100, solver="heun", num_steps=16, guidance=1.5, prompts=PROMPTS
        ),
        compare=CompareConfig(
            num_samples=8,
            fixed_solvers=("euler", "heun"),
            num_steps=(1, 2, 4, 8, 16),
            adaptive_solvers=("tsit5",),
            tolerances=(1e-2, 1e-3),
        ),
        evaluation=EvaluationConfig(num_samples=2_000),
    )
