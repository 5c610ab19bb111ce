"""Flow matching against the generation before, on Fashion-MNIST: paths, couplings, solvers.

fmjax study configs/fashion_mnist_study.py

Six trainings of one network on one budget: flow matching on the linear, the cosine and a
variance-preserving path, with minibatch optimal transport, and DDPM with linear and with cosine
betas; each sampled deterministically and with noise along the way, at 8 and at 40 evaluations,
which divide the 1,000 times that DDPM is trained at.
"""

import dataclasses

from fmjax.config import (
    AffinePath,
    Config,
    Cosine,
    CosineBetas,
    DiTConfig,
    IdxData,
    LinearBetas,
    LossConfig,
    MinibatchOT,
    OptimizerConfig,
    Prediction,
    SamplingConfig,
    StudyConfig,
    TrainingConfig,
    UniformSteps,
    VariancePreserving,
)


def get_study() -> StudyConfig:
    """1,000 steps of 128 images for each model, 1,000 samples for each row."""
    linear = Config(
        name="linear",
        data=IdxData("fashion_mnist"),
        network=DiTConfig(patch_size=4, width=128, num_layers=4, num_heads=4, unroll_layers=True),
        loss=LossConfig(label_drop=0.1, stratified=True),
        optimizer=OptimizerConfig(
            name="muon", learning_rate=4e-3, schedule="cosine", warmup_steps=100
        ),
        training=TrainingConfig(
            num_steps=1_000,
            batch_size=128,
            accumulation_steps=4,
            ema_decay=0.995,
            log_every=50,
            checkpoint_every=500,
        ),
    )
    # Ho et al. 2020, arXiv:2006.11239: noise is predicted, at one of 1,000 times, unweighted.
    simple = LossConfig(
        prediction=Prediction.X0,
        space=Prediction.X0,
        density=UniformSteps(1_000),
        label_drop=0.1,
        stratified=True,
    )
    different = dataclasses.replace
    return StudyConfig(
        name="fashion_mnist_study",
        runs=(
            linear,
            different(linear, name="ot", coupling=MinibatchOT()),
            different(linear, name="cosine", path=AffinePath(Cosine())),
            different(linear, name="vp", path=AffinePath(VariancePreserving())),
            different(linear, name="ddpm_linear", path=AffinePath(LinearBetas()), loss=simple),
            different(linear, name="ddpm_cosine", path=AffinePath(CosineBetas()), loss=simple),
        ),
        # The same evaluations for all. A sampler that knows how holds what it
        # takes for the data within their bounds, as DDPM does.
        samplings=tuple(
            SamplingConfig(solver=solver, num_steps=nfe // evaluations, clip=clip)
            for solver, evaluations, clip in (
                ("ddim", 1, 1.0),
                ("heun", 2, None),
                ("dpm_solver_pp_2m", 1, 1.0),
                ("unipc", 1, 1.0),
                ("euler_maruyama", 1, None),
                ("ancestral", 1, 1.0),
            )
            for nfe in (8, 40)
        ),
        num_samples=1_000,
    )
