"""Study of sampling with few steps on Fashion-MNIST: ten trainings of one network.

fmjax study configs/fashion_mnist_few_steps.py

Models: flow matching, flow matching with minibatch optimal transport, the 2- and 3-rectified flows,
one distilled to a single step, a shortcut model, MeanFlow, improved MeanFlow, MeanFlow with
built-in guidance, and DDPM. Each is sampled with 1, 2, 4, 8 and 32 network evaluations and with
adaptive steps, except the distilled model, which is sampled with one. All trainings have the same
number of steps, but students start from the weights of their teacher: with those of the teachers,
the 2-rectified flow has two times, the 3-rectified and the distilled flow three times as many. Each
training takes eight to twelve minutes on two CPU cores. docs/results.md has the results.
"""

from dataclasses import replace

from fmjax.config import (
    AffinePath,
    BuiltInGuidance,
    Config,
    DiTConfig,
    IdxData,
    LinearBetas,
    LossConfig,
    MeanFlowConfig,
    MinibatchOT,
    OptimizerConfig,
    Prediction,
    ReflowConfig,
    Sampling,
    ShortcutConfig,
    StudyConfig,
    TrainingConfig,
    Uniform,
    UniformSteps,
    UShaped,
)

EVALUATIONS = (1, 2, 4, 8, 32)


def get_study() -> StudyConfig:
    """Return the study: 1,500 training steps per model, 1,000 samples per row of the table."""
    flow = Config(
        name="flow",
        data=IdxData("fashion_mnist"),
        network=DiTConfig(patch_size=7, width=128, num_layers=4, num_heads=4, unroll_layers=True),
        loss=LossConfig(label_drop=0.1, stratified=True),
        optimizer=OptimizerConfig(
            name="muon", learning_rate=4e-3, schedule="cosine", warmup_steps=100
        ),
        training=TrainingConfig(
            num_steps=1_500,
            batch_size=128,
            ema_decay=0.998,
            log_every=50,
            checkpoint_every=500,
        ),
    )
    # 10,000 pairs of noise and image, with 16 network evaluations each.
    pairs = ReflowConfig("flow", num_pairs=10_000, sampling=Sampling.of(solver="heun", num_steps=8))
    rectified = replace(flow, loss=LossConfig(label_drop=0.1, density=UShaped(), stratified=True))
    one_step = LossConfig(label_drop=0.1, density=UniformSteps(1))
    simple = LossConfig(
        prediction=Prediction.X0,
        space=Prediction.X0,
        density=UniformSteps(1_000),
        label_drop=0.1,
        stratified=True,
    )
    # Uniform times: sampling jumps from t = 0, which LogitNormal(0.4, 1) rarely trains.
    mean_flow = MeanFlowConfig(ratio_r_neq_t=0.5, density=Uniform())
    guided = replace(mean_flow, improved=True, guidance=BuiltInGuidance(1.5))
    runs = (
        flow,
        replace(flow, name="ot", coupling=MinibatchOT()),
        replace(rectified, name="2rf", reflow=pairs),
        replace(rectified, name="3rf", reflow=replace(pairs, teacher="2rf")),
        replace(flow, name="distilled", loss=one_step, reflow=replace(pairs, teacher="2rf")),
        replace(flow, name="shortcut", loss=ShortcutConfig(num_steps=32, stratified=True)),
        replace(flow, name="mean_flow", loss=mean_flow),
        replace(flow, name="improved_mean_flow", loss=replace(mean_flow, improved=True)),
        replace(flow, name="guided_mean_flow", loss=guided),
        replace(flow, name="ddpm", path=AffinePath(LinearBetas()), loss=simple),
    )
    adaptive = Sampling.of(solver="tsit5", rtol=1e-2, atol=1e-2)
    samplings = {
        solver: (*(Sampling.of(solver=solver, num_steps=n) for n in EVALUATIONS), adaptive)
        for solver in ("euler", "flow_map", "ddim")
    }
    mean_flows = ("mean_flow", "improved_mean_flow", "guided_mean_flow")
    # Sample MeanFlow models by jumps and by their velocity; for the shortcut model, 32 jumps are
    # Euler steps of its velocity.
    velocity_steps = Sampling.of(solver="euler", num_steps=32)
    mean_flow_samplings = dict.fromkeys(mean_flows, (*samplings["flow_map"], velocity_steps))
    # 16 guided steps cost 32 network evaluations.
    guided_steps = Sampling.of(solver="euler", num_steps=16, guidance=1.5)
    return StudyConfig(
        name="fashion_mnist_few_steps",
        runs=runs,
        samplings=samplings["euler"],
        samplings_by_run={
            **mean_flow_samplings,
            "shortcut": samplings["flow_map"],
            "flow": (*samplings["euler"], guided_steps),
            "ddpm": samplings["ddim"],
            "distilled": samplings["euler"][:1],
        },
        num_samples=1_000,
    )
