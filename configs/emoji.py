"""Text to image on 3,655 color emoji of 32x32 pixels and their names.

fmjax train configs/emoji.py
fmjax sample runs/emoji --prompts "a purple heart" "a dog with sunglasses"

The images come from the Debian packages fonts-noto-color-emoji and unicode-data.

On two CPU cores, the entire command takes 23 minutes. The model generates emoji for
prompts whose words occur in the training data, also for emoji that were held out, but not a cat
with sunglasses.
"""

from fmjax.config import (
    CompareConfig,
    Config,
    EmojiData,
    EvaluationConfig,
    LogitNormal,
    LossConfig,
    MMDiTConfig,
    OptimizerConfig,
    Sampling,
    TextEncoderConfig,
    TrainingConfig,
)

TRAINED_ON = (
    "red heart",
    "pizza",
    "smiling cat with heart-eyes",
    "loudly crying face",
    "tropical fish",
    "evergreen tree",
    "police car",
    "green apple",
)
HELD_OUT = (
    "woman firefighter with dark skin tone",
    "astronaut with light skin tone",
    "man with medium-dark skin tone and white hair",
    "Santa Claus with light skin tone",
)
MADE_UP = ("pink square", "blue apple", "cat with sunglasses", "cat with halo")


def get_config() -> Config:
    """Return an experiment with an MM-DiT on 4x4 patches and a text encoder of two layers."""
    return Config(
        name="emoji",
        data=EmojiData(repeats=3),
        network=MMDiTConfig(
            patch_size=4,
            num_heads=4,
            head_width=32,
            num_layers=4,
            qk_norm=True,
            unroll_layers=True,
        ),
        text_encoder=TextEncoderConfig(width=128, num_layers=2, num_heads=4),
        loss=LossConfig(label_drop=0.1, density=LogitNormal(), stratified=True),
        optimizer=OptimizerConfig(
            name="muon", learning_rate=4e-3, schedule="cosine", warmup_steps=150
        ),
        training=TrainingConfig(
            num_steps=1_300,
            batch_size=128,
            accumulation_steps=4,
            ema_decay=0.998,
            log_every=50,
            checkpoint_every=400,
        ),
        sampling=Sampling.of(
            num_samples=96,
            solver="heun",
            num_steps=16,
            guidance=3.0,
            prompts=(*TRAINED_ON, *HELD_OUT, *MADE_UP),
        ),
        compare=CompareConfig(
            num_samples=8,
            fixed_solvers=("euler", "heun"),
            num_steps=(1, 2, 4, 8, 16),
            adaptive_solvers=("tsit5",),
            tolerances=(1e-2, 1e-3),
        ),
        evaluation=EvaluationConfig(num_samples=500),
    )
