"""Study of flow matching and DDPM on Fashion-MNIST: paths, couplings and solvers.

fmjax study configs/fashion_mnist_study.py

Six trainings of the same network with the same number of steps: flow matching on the linear, the
cosine and a variance-preserving path, flow matching with minibatch optimal transport, and DDPM with
linear and with cosine betas. Each is sampled by deterministic and stochastic solvers with 8 and 40
network evaluations. Both numbers divide 1,000, the number of times that DDPM is trained at.
"""

from dataclasses import replace

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
    Sampling,
    StudyConfig,
    TrainingConfig,
    UniformSteps,
    VariancePreserving,
)


def get_study() -> StudyConfig:
    """Return the study: 1,000 training steps per model, 1,000 samples per row of the table."""
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
    # Ho et al. 2020, arXiv:2006.11239: unweighted noise prediction at 1,000 times.
    simple = LossConfig(
        prediction=Prediction.X0,
        space=Prediction.X0,
        density=UniformSteps(1_000),
        label_drop=0.1,
        stratified=True,
    )
    return StudyConfig(
        name="fashion_mnist_study",
        runs=(
            linear,
            replace(linear, name="ot", coupling=MinibatchOT()),
            replace(linear, name="cosine", path=AffinePath(Cosine())),
            replace(linear, name="vp", path=AffinePath(VariancePreserving())),
            replace(linear, name="ddpm_linear", path=AffinePath(LinearBetas()), loss=simple),
            replace(linear, name="ddpm_cosine", path=AffinePath(CosineBetas()), loss=simple),
        ),
        # The same number of network evaluations for all. Diffusion samplers clip the predicted
        # data to their range, as DDPM does.
        samplings=tuple(
            Sampling.of(solver=solver, num_steps=nfe // evaluations, clip=clip)
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
