"""Straight paths and few steps on Fashion-MNIST: ten trainings, one network, one number of steps.

fmjax study configs/fashion_mnist_few_steps.py

Flow matching, with optimal-transport pairs, 2- and 3-rectified, distilled to one step, a shortcut
model, MeanFlow, improved MeanFlow, the same with guidance built in, and DDPM: sampled with 1, 2, 4,
8 and 32 evaluations and with adaptive steps, the distilled with 1 alone. A student starts from its
teacher's weights: the 2- and 3-rectified and the distilled have had two and three times the steps
of the others. Eight to twelve minutes each on two CPU cores; what was found is in docs/results.md.
"""

import dataclasses

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
    SamplingConfig,
    ShortcutConfig,
    StudyConfig,
    TrainingConfig,
    Uniform,
    UniformSteps,
    UShaped,
)

EVALUATIONS = (1, 2, 4, 8, 32)


def get_study() -> StudyConfig:
    """1,500 steps of 128 images for each model, 1,000 samples for each row."""
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
    different = dataclasses.replace
    # The pairs of a teacher: 10,000 noises and images, 16 evaluations each.
    pairs = ReflowConfig(
        "flow", num_pairs=10_000, sampling=SamplingConfig(solver="heun", num_steps=8)
    )
    rectified = different(flow, loss=LossConfig(label_drop=0.1, density=UShaped(), stratified=True))
    one_step = LossConfig(label_drop=0.1, density=UniformSteps(1))
    simple = LossConfig(
        prediction=Prediction.X0,
        space=Prediction.X0,
        density=UniformSteps(1_000),
        label_drop=0.1,
        stratified=True,
    )
    # Uniform, for a jump from t = 0 is asked for that LogitNormal(0.4, 1) hardly ever teaches.
    mean_flow = MeanFlowConfig(ratio_r_neq_t=0.5, density=Uniform())
    guided = different(mean_flow, improved=True, guidance=BuiltInGuidance(1.5))
    runs = (
        flow,
        different(flow, name="ot", coupling=MinibatchOT()),
        different(rectified, name="2rf", reflow=pairs),
        different(rectified, name="3rf", reflow=different(pairs, teacher="2rf")),
        different(flow, name="distilled", loss=one_step, reflow=different(pairs, teacher="2rf")),
        different(flow, name="shortcut", loss=ShortcutConfig(num_steps=32, stratified=True)),
        different(flow, name="mean_flow", loss=mean_flow),
        different(flow, name="improved_mean_flow", loss=different(mean_flow, improved=True)),
        different(flow, name="guided_mean_flow", loss=guided),
        different(flow, name="ddpm", path=AffinePath(LinearBetas()), loss=simple),
    )
    adaptive = SamplingConfig(solver="tsit5", rtol=1e-2, atol=1e-2)
    ways = {
        solver: (*(SamplingConfig(solver=solver, num_steps=n) for n in EVALUATIONS), adaptive)
        for solver in ("euler", "flow_map", "ddim")
    }
    names = ("mean_flow", "improved_mean_flow", "guided_mean_flow")
    # Their jumps, and the velocity that they have learned with them: a shortcut model's 32 jumps.
    own_flow = SamplingConfig(solver="euler", num_steps=32)
    maps = dict.fromkeys(names, (*ways["flow_map"], own_flow))
    # 16 steps are 32 evaluations: with the class and without.
    as_guided = SamplingConfig(solver="euler", num_steps=16, guidance=1.5)
    return StudyConfig(
        name="fashion_mnist_few_steps",
        runs=runs,
        samplings=ways["euler"],
        own_samplings={
            **maps,
            "shortcut": ways["flow_map"],
            "flow": (*ways["euler"], as_guided),
            "ddpm": ways["ddim"],
            "distilled": ways["euler"][:1],
        },
        num_samples=1_000,
    )
