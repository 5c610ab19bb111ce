"""Tests of configs: validation, JSON and two training steps of every config file."""

import dataclasses
import json
import typing
from pathlib import Path

import jax
import numpy as np
import pytest

import fmjax.config
from fmjax._arrays import Batch, Text, TextPart, TextShape
from fmjax._specs import Spec, is_captions, token_spec
from fmjax._trees import partition
from fmjax.cli.parsing import parse
from fmjax.config import (
    SOLVERS,
    CompareConfig,
    Config,
    EvaluationConfig,
    LossConfig,
    PretrainedConfig,
    ReflowConfig,
    Sampling,
    StudyConfig,
    TrainingConfig,
    build,
    differentiable_forwards,
    from_json,
    make_solve,
    make_step,
    serialize,
    to_json,
)
from fmjax.data import IdxData, ToyData
from fmjax.networks import DIT_XL, DiTConfig, LoRAConfig, MLPConfig, UNetConfig
from fmjax.paths import (
    AffinePath,
    Cosine,
    Linear,
    LogitNormal,
    MinibatchOT,
    Polynomial,
    Prediction,
    Shifted,
    Tabulated,
    UShaped,
    VarianceExploding,
    VariancePreserving,
    edm_grid,
    quantile_grid,
    shifted_grid,
    uniform_grid,
)
from fmjax.runs.folder import with_current_defaults
from fmjax.runs.load_config import load_config, load_study
from fmjax.sharding import make_mesh
from fmjax.solvers import AdaptiveSteps, ClassifierFree, ErrorControl, FixedSteps, Model
from fmjax.training import OptimizerConfig, init_state

CONFIGS = Path(__file__).parents[2] / "configs"
# The event shape, conditions and reduced network fields of each config.
SHAPES = {
    "digits": ((8, 8, 1), 10, {"width": 16, "num_layers": 2, "num_heads": 2}),
    "image_folder": ((16, 16, 3), 3, {"width": 16, "num_layers": 1, "num_heads": 2}),
    "fashion_mnist": ((28, 28, 1), 10, {"width": 16, "num_layers": 2, "num_heads": 2}),
    "sneakers_to_boots": ((28, 28, 1), None, {"width": 16, "num_layers": 2, "num_heads": 2}),
    "posterior": ((2,), Spec((2,)), {"width": 16, "num_layers": 2}),
    **dict.fromkeys(("toy2d", "transport2d"), ((2,), None, {"width": 16})),
    "cifar10": (
        (8, 8, 3),
        None,
        {
            "width": 8,
            "multipliers": (1, 2),
            "num_blocks": 1,
            "attention_resolutions": (8,),
            "head_width": 8,
        },
    ),
    "imagenet256_sit": ((8, 8, 4), 1000, {"width": 16, "num_layers": 2, "num_heads": 2}),
    "cifar10_rectified_flow": (
        (8, 8, 3),
        None,
        {
            "width": 8,
            "multipliers": (1,),
            "num_blocks": 1,
            "attention_resolutions": (),
            "head_width": 8,
        },
    ),
    **{
        f"imagenet256_{loss}": ((8, 8, 4), 1000, {"width": 16, "num_layers": 1, "num_heads": 2})
        for loss in ("shortcut", "mean_flow", "improved_mean_flow")
    },
    "flux_dev": (
        (4, 4, 4),
        TextShape(3, 8, 6),
        {
            "num_heads": 2,
            "head_width": 8,
            "num_double": 1,
            "num_single": 2,
            "rotary_axes": (4, 2, 2),
        },
    ),
    "fashion_captions": (
        (28, 28, 1),
        token_spec(8, 64),
        {"num_heads": 2, "head_width": 8, "num_layers": 1},
    ),
    "emoji": ((8, 8, 3), token_spec(12, 2048), {"num_heads": 2, "head_width": 8, "num_layers": 1}),
    "finetune_flux": (
        (4, 4, 4),
        TextShape(3, 8, 6),
        {
            "num_heads": 2,
            "head_width": 8,
            "num_double": 1,
            "num_single": 2,
            "rotary_axes": (4, 2, 2),
        },
    ),
    "finetune_sd3": (
        (4, 4, 4),
        TextShape(3, 8, 6),
        {
            "num_heads": 2,
            "head_width": 8,
            "num_layers": 3,
            "dual_layers": (0,),
            "position_table": 8,
        },
    ),
    "sd35_large": (
        (4, 4, 4),
        TextShape(3, 8, 6, (TextPart((0, 3), (0, 8), (0, 6)),)),
        {"num_heads": 2, "head_width": 8, "num_layers": 2, "position_table": 8},
    ),
}
STUDIES = ("fashion_mnist_study", "fashion_mnist_grids", "fashion_mnist_few_steps")
UNUSUAL = Config(
    name="unusual",
    data=ToyData("spirals", num_examples=100),
    network=MLPConfig(width=8),
    path=AffinePath(Polynomial(3.0), min_divisor=0.05),
    coupling=MinibatchOT("shard"),
    loss=LossConfig(Prediction.X1, Prediction.X0, density=Shifted(LogitNormal(0.5), 2.0)),
    optimizer=OptimizerConfig(name="muon", clip_norm=None),
    sampling=Sampling.of(
        solver="euler_maruyama",
        rate="constant",
        num_steps=8,
        guidance_interval=(0.1, 0.9),
        grid="quantiles",
        grid_density=Shifted(UShaped()),
    ),
    conditional=False,
)


def steps_of(sampling, schedule=Linear(), calibrated=None):
    """Return the steps of a sampling on a path with this schedule."""
    return sampling.steps(Model(None, AffinePath(schedule)), calibrated)


RELEASED = PretrainedConfig("x")
STUDENT = Config(name="student", reflow=ReflowConfig("x"))


def test_every_config_file_is_in_the_table():
    names = {file.stem for file in CONFIGS.glob("*.py")}
    assert names == {*SHAPES, *STUDIES}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_builds_all_models_with_the_same_network_and_number_of_steps(name):
    study = load_study(CONFIGS / f"{name}.py")
    assert len({(run.network, run.optimizer, run.training) for run in study.runs}) == 1
    for run in study.runs:
        experiment = build(run, (28, 28, 1), 10)
        for sampling in study.samplings_of(run):
            make_solve(experiment.model, sampling)
            steps = sampling.steps(experiment.model, Tabulated())
            if sampling.options.num_steps is not None:
                assert len(steps.times) == sampling.options.num_steps + 1


def test_the_min_divisor_of_old_runs_is_read_as_zero():
    old_json = to_json(Config(name="x")).replace('"min_divisor": 0.0', '"min_divisor": 0.001')
    assert with_current_defaults(from_json(old_json)) == Config(name="x")
    assert with_current_defaults(UNUSUAL) is UNUSUAL  # JiT's min_divisor is kept.
    released = Config(name="x", pretrained=RELEASED, path=AffinePath(min_divisor=1e-3))
    assert with_current_defaults(from_json(to_json(released))) == Config(
        name="x", pretrained=RELEASED
    )


def test_paths_of_old_runs_are_read_without_a_type():
    document = json.loads(to_json(UNUSUAL))
    assert document["path"].pop("type") == "AffinePath"
    assert from_json(json.dumps(document)) == UNUSUAL


def test_a_config_without_a_study_is_rejected():
    with pytest.raises(ValueError, match=r"must define get_study\(\) -> StudyConfig"):
        load_study(CONFIGS / "digits.py")


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_every_config_takes_two_steps_at_reduced_size(name):
    event_shape, conditions, reduced_fields = SHAPES[name]
    config = load_config(CONFIGS / f"{name}.py")
    config = dataclasses.replace(
        config, network=dataclasses.replace(config.network, **reduced_fields)
    )
    experiment = build(config, event_shape, conditions)
    mesh = make_mesh(devices=jax.devices()[:1])  # Other tests compare with eight devices.
    state, sharding = init_state(
        experiment.model.net, experiment.optimizer, jax.random.key(0), mesh
    )
    step = make_step(config, experiment, mesh, sharding)
    frozen = ()
    if experiment.tuning is not None:
        frozen = (partition(experiment.init(jax.random.key(1)), experiment.tuning.learns)[1],)
    rng = np.random.default_rng(0)
    if isinstance(conditions, TextShape):
        tokens = rng.standard_normal((8, conditions.num_tokens, conditions.width), np.float32)
        cond = Text(tokens, rng.standard_normal((8, conditions.pooled_width), np.float32))
    elif isinstance(conditions, Spec) and is_captions(conditions):
        cond = rng.integers(0, conditions.num_values, (8, *conditions.shape)).astype(np.int32)
    elif isinstance(conditions, Spec):
        cond = rng.standard_normal((8, *conditions.shape), np.float32)
    else:
        cond = conditions and rng.integers(0, conditions, 8).astype(np.int32)
    batch = Batch(rng.uniform(-1, 1, (8, *event_shape)).astype(np.float32), cond)
    for expected in (1, 2):
        state, metrics = step(state, batch, *frozen)
        assert int(state.step) == expected
        assert bool(metrics.finite)


def test_the_command_in_the_sit_config_gives_dit_xl():
    file = CONFIGS / "imagenet256_sit.py"
    command = file.read_text().replace("\\\n", " ").splitlines()[3]
    assert command.startswith("    fmjax train configs/imagenet256_sit.py")
    config = parse(Config, load_config(file), command.split()[3:], "fmjax")
    assert config.network == dataclasses.replace(DIT_XL, dtype="bfloat16")


@pytest.mark.parametrize("name", [*SHAPES, "unusual"])
def test_a_config_read_back_from_json_is_equal(name):
    config = UNUSUAL if name == "unusual" else load_config(CONFIGS / f"{name}.py")
    assert from_json(to_json(config)) == config


def test_the_error_names_an_unknown_field_in_json():
    text = to_json(UNUSUAL).replace('"num_steps": 10000', '"num_stops": 10000')
    with pytest.raises(ValueError, match="num_stops"):
        from_json(text)


def test_the_error_names_a_value_out_of_range_in_json():
    text = to_json(UNUSUAL).replace('"batch_size": 128', '"batch_size": 0')
    with pytest.raises(ValueError, match=r"training\.batch_size must be at least 1, got 0"):
        from_json(text)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"grid": "uniform"}, uniform_grid(4)),
        ({"grid": "shifted", "shift": 2.0}, shifted_grid(4, 2.0)),
        ({"grid": "edm"}, edm_grid(4)),
        ({"grid": "quantiles", "grid_density": UShaped()}, quantile_grid(4, UShaped())),
    ],
)
def test_fixed_steps_follow_the_named_grid(settings, expected):
    steps = steps_of(Sampling.of(solver="euler", num_steps=4, **settings))
    assert isinstance(steps, FixedSteps)
    np.testing.assert_array_equal(steps.times, expected)


def test_the_edm_grid_has_the_noise_to_data_ratios_of_edm_on_each_path():
    times = steps_of(Sampling.of(solver="euler", num_steps=5, grid="edm"), Cosine()).times
    assert (float(times[0]), float(times[-1])) == (0.0, 1.0)
    linear = np.asarray(edm_grid(5), np.float64)[1:-1]
    ratios = 1 / np.tan(0.5 * np.pi * np.asarray(times, np.float64)[1:-1])
    np.testing.assert_allclose(ratios, (1 - linear) / linear, rtol=1e-4)


def test_the_edm_grid_is_rejected_for_paths_without_these_ratios():
    sampling = Sampling.of(solver="euler", num_steps=16, grid="edm")
    assert len(steps_of(sampling, VariancePreserving()).times) == 17
    with pytest.raises(ValueError, match=r"schedule must reach every noise-to-data ratio of the"):
        steps_of(sampling, VarianceExploding())


def test_the_calibrated_grid_has_the_quantiles_of_the_measured_density():
    sampling = Sampling.of(solver="euler", num_steps=4, grid="calibrated")
    measured = Tabulated((0.0, 0.5, 1.0), (3.0, 1.0))
    times = steps_of(sampling, calibrated=measured).times
    np.testing.assert_array_equal(times, quantile_grid(4, measured))
    with pytest.raises(ValueError, match="grid must not be calibrated without a trained run"):
        steps_of(sampling)


def test_slots_give_adaptive_steps_per_sample():
    steps = steps_of(Sampling.of(slots=7))
    assert isinstance(steps, AdaptiveSteps)
    assert (steps.slots, steps.control) == (7, ErrorControl.PER_SAMPLE)
    with pytest.raises(ValueError, match="slots must not be combined with num_steps"):
        Sampling.of(solver="heun", num_steps=4, slots=7)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_grid_is_rejected():
    with pytest.raises(ValueError, match=r"grid must be one of .*did you mean 'uniform'"):
        Sampling.of(solver="euler", num_steps=2, grid="unifrom")


def test_sampling_without_num_steps_is_adaptive():
    steps = steps_of(Sampling.of(rtol=1e-3, atol=1e-5))
    assert isinstance(steps, AdaptiveSteps)
    assert (steps.rtol, steps.atol) == (1e-3, 1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_name_makes_a_solver(name):
    options = Sampling.of(solver=name, num_steps=1).options
    assert (options.solver, options.num_steps) == (name, 1)


@pytest.mark.parametrize(("num_classes", "label_drop"), [(None, 0.1), (3, 0.0)])
def test_guidance_needs_classes_and_label_drop(num_classes, label_drop):
    config = dataclasses.replace(UNUSUAL, loss=LossConfig(label_drop=label_drop))
    experiment = build(config, (2,), num_classes)
    with pytest.raises(
        ValueError, match="guidance must be 1 for a model without classes or text, or with"
    ):
        ClassifierFree(2.0)(experiment.model)


def test_all_adds_the_common_solvers():
    default = CompareConfig()
    assert len(default.all_fixed_solvers) + len(default.all_adaptive_solvers) <= 4
    all_solvers = CompareConfig(all=True)
    assert sorted(all_solvers.all_fixed_solvers) == [
        "adams_bashforth_2",
        "euler",
        "heun",
        "midpoint",
        "rk4",
    ]
    assert sorted(all_solvers.all_adaptive_solvers) == ["bosh3", "dopri5", "dopri8", "tsit5"]
    custom = CompareConfig(fixed_solvers=("dopri5", "ralston"), adaptive_solvers=(), all=True)
    assert custom.all_fixed_solvers[:2] == ("dopri5", "ralston")
    assert sorted(custom.all_adaptive_solvers) == ["bosh3", "dopri8", "tsit5"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampling.of(solver="tsit6"), r"solver must be one of .*did you mean 'tsit5'"),
        (lambda: Sampling.of(rtol=0.0), "rtol must be positive, got 0.0"),
        (lambda: Sampling.of(atol=-1.0), "atol must be positive, got -1.0"),
        (lambda: Sampling.of(solver="euler"), "num_steps must be given for euler"),
        (lambda: Sampling.of(solver="ddim"), "num_steps must be given for ddim"),
        (lambda: Sampling.of(solver="sea"), "num_steps must be given for sea"),
        (lambda: Sampling.of(slots=0), "slots must be at least 1, got 0"),
        (lambda: Sampling.of(solver="shark", slots=4), "slots must be left out for shark"),
        (lambda: Sampling.of(clip=1.0), "clip must be left out for tsit5, which does not clip"),
        (lambda: Sampling.of(solver="ddim", num_steps=1, clip=0.0), "clip must be positive"),
        (
            lambda: Sampling.of(solver="shark", last_step=1.0),
            r"last_step must lie in \[0.0, 0.999\], got 1.0",
        ),
        (
            lambda: Sampling.of(solver="shark", rate_scale=-1.0),
            "scale must be at least 0.0, got -1.0",
        ),
        (
            lambda: Sampling.of(solver="shark", rate="konstant"),
            "rate must be one of .*did you mean",
        ),
        (lambda: Sampling.of(rtol=float("inf")), "rtol must be finite, got inf"),
        (lambda: CompareConfig(slots=0), "compare.slots must be at least 1, got 0"),
        (lambda: StudyConfig("s", (), (Sampling.of(),)), "runs must hold at least one"),
        (lambda: StudyConfig("s", (UNUSUAL,), ()), "samplings must hold at least one"),
        (
            lambda: StudyConfig("s", (UNUSUAL, UNUSUAL), (Sampling.of(),)),
            "runs must have distinct",
        ),
        (
            lambda: StudyConfig(
                "s", (UNUSUAL,), (Sampling.of(),), samplings_by_run={"x": (Sampling.of(),)}
            ),
            r"samplings_by_run must have keys among unusual, got \['x'\]",
        ),
        (
            lambda: StudyConfig("s", (STUDENT, Config(name="x")), (Sampling.of(),)),
            "runs must list teachers before their students, got student",
        ),
        (
            lambda: StudyConfig("s", (UNUSUAL, Config(name="x")), (Sampling.of(),)),
            "runs must have the same data",
        ),
        (
            lambda: build(
                Config(
                    name="x",
                    network=MLPConfig(),
                    loss=LossConfig(label_drop=0.0),
                    sampling=Sampling.of(guidance=2.0),
                ),
                (2,),
                3,
            ),
            "sampling.guidance must be 1 for a model without classes or text, or with",
        ),
        (
            lambda: build(
                Config(name="x", network=MLPConfig(), compare=CompareConfig(guidance=2.0)),
                (2,),
                None,
            ),
            "compare.guidance must be 1 for a model without classes",
        ),
        (lambda: Sampling.of(num_steps=0), "num_steps must lie in .1, 16777216., got 0"),
        (lambda: Sampling.of(num_samples=0), "num_samples must be at least 1, got 0"),
        (lambda: Sampling.of(guidance=-1.0), "guidance must be at least 0"),
        (lambda: Sampling.of(guidance_interval=(0.9, 0.1)), "guidance_interval must be low <="),
        (lambda: CompareConfig(num_samples=1), "compare.num_samples must be at least 2, got 1"),
        (
            lambda: CompareConfig(num_steps=(0,)),
            "compare.num_steps must lie in .1, 16777216., got 0",
        ),
        (lambda: CompareConfig(tolerances=(0.0,)), "compare.tolerances must be positive"),
        (lambda: CompareConfig(fixed_solvers=("ruler",)), r"fixed_solvers .*mean 'euler'"),
        (
            lambda: CompareConfig(adaptive_solvers=("euler",)),
            "compare.adaptive_solvers must be one of .*, got 'euler'",
        ),
        (
            lambda: CompareConfig(fixed_solvers=("tsit5",)),
            r"adaptive_solvers must not be among compare.fixed_solvers, got \['tsit5'\]",
        ),
        (lambda: PretrainedConfig(""), "pretrained.folder must be a folder, got ''"),
        (lambda: PretrainedConfig("x", dtype="f16"), "pretrained.dtype must be one of float32, b"),
        (lambda: LoRAConfig(rank=0), "lora.rank must be at least 1, got 0"),
        (lambda: LoRAConfig(alpha=0.0), "lora.alpha must be positive, got 0.0"),
        (lambda: LoRAConfig(layers=()), "lora.layers must contain at least one"),
        (
            lambda: Config(name="x", pretrained=RELEASED, path=AffinePath(Cosine())),
            "path must be an AffinePath with the Linear schedule for released weights",
        ),
        (
            lambda: Config(name="x", pretrained=RELEASED, loss=LossConfig(Prediction.X1)),
            "loss must be a LossConfig with prediction VELOCITY for released weights",
        ),
        (
            lambda: Config(name="x", pretrained=RELEASED, reflow=ReflowConfig("x")),
            "reflow must be left out with released weights",
        ),
        (
            lambda: build(Config(name="x", pretrained=RELEASED), (8, 8, 4), TextShape(3, 8, 6)),
            "network must be a FluxConfig or an MMDiTConfig with released weights, got DiTConfig",
        ),
        (lambda: EvaluationConfig(num_samples=1), "evaluation.num_samples must be at least 2"),
        (lambda: TrainingConfig(num_steps=0), "training.num_steps must be at least 1, got 0"),
        (lambda: TrainingConfig(ema_decay=1.5), r"training.ema_decay must lie in"),
        (lambda: LossConfig(label_drop=2.0), r"loss.label_drop must lie in \[0.0, 1.0\], got 2.0"),
        (lambda: Config(name="../x"), "name must be letters, digits"),
        (
            lambda: build(
                Config(name="x", data=IdxData(), network=DiTConfig(patch_size=3)), (28, 28, 1), 10
            ),
            "patch_size must divide",
        ),
        (
            lambda: build(Config(name="x", network=UNetConfig()), (2,), None),
            "event_shape must be .height",
        ),
    ],
)
def test_invalid_settings_are_rejected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_forward_mode_uses_plain_attention():
    config = Config(name="forwards", network=DiTConfig(attention="splash"))
    plain = differentiable_forwards(config)
    assert plain.network == DiTConfig(attention="xla")
    assert dataclasses.replace(plain, network=config.network) == config
    mlp = Config(name="forwards", network=MLPConfig())
    assert differentiable_forwards(mlp) == mlp


def test_every_choice_of_a_config_field_can_be_imported_from_fmjax_config():
    choices = {cls.__name__ for union in serialize._UNIONS for cls in typing.get_args(union)}
    choices -= {"NoneType"}  # A setting may be left out.
    assert choices <= set(vars(fmjax.config))
