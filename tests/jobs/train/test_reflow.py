"""End-to-end tests of reflow and distillation on two-dimensional points."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fmjax.config import (
    CompareConfig,
    Config,
    LossConfig,
    MeanFlowConfig,
    ReflowConfig,
    Sampling,
    ShortcutConfig,
    TrainingConfig,
    build,
)
from fmjax.config.likelihood import LikelihoodConfig
from fmjax.data import ToyData, open_pairs
from fmjax.jobs.compare.compare_run import run_methods
from fmjax.jobs.evaluate.likelihood import likelihood_run
from fmjax.jobs.evaluate.straightness import measure_straightness, read_straightness
from fmjax.jobs.report.report import report_run
from fmjax.jobs.train.pairs import make_pairs, pairs_folder
from fmjax.jobs.train.prepare import prepare
from fmjax.jobs.train.reflow import reflow_config
from fmjax.jobs.train.train import train
from fmjax.metrics import sliced_wasserstein, straightness
from fmjax.networks import MLPConfig
from fmjax.paths import (
    AffinePath,
    LinearBetas,
    MinibatchOT,
    Prediction,
    UniformSteps,
    UShaped,
    uniform_grid,
)
from fmjax.runs.folder import RunFolder, open_run
from fmjax.runs.sampling.files import read_samples, write_samples
from fmjax.runs.sampling.run_samples import sample_from_run
from fmjax.runs.sampling.source_points import run_source_points
from fmjax.sharding import MeshConfig, make_mesh
from fmjax.solvers import ClassifierFree, FixedSteps, invert, sample
from fmjax.solvers.steppers.ode import RK4
from fmjax.training import OptimizerConfig
from tests.tiny_run import environment

pytestmark = pytest.mark.slow

STEPS = FixedSteps(uniform_grid(8))
TEACHER = Config(
    name="teacher",
    data=ToyData("moons"),
    source=ToyData("eight_gaussians"),
    conditional=False,
    network=MLPConfig(width=64, num_layers=2, unroll_layers=True),
    loss=LossConfig(label_drop=0.0, stratified=True),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=20, schedule="cosine"),
    training=TrainingConfig(num_steps=400, batch_size=256, checkpoint_every=400, ema_decay=0.98),
    sampling=Sampling.of(solver="rk4", num_steps=8, batch_size=1000),
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return train(TEACHER, tmp_path_factory.mktemp("reflow") / "teacher")


@pytest.fixture(scope="module")
def student_config(teacher):
    config = reflow_config(TEACHER, teacher.folder.root)
    reflow = dataclasses.replace(config.reflow, num_pairs=3000, real_share=0.25)
    return dataclasses.replace(config, reflow=reflow)


@pytest.fixture(scope="module")
def pairs(teacher, student_config):
    return make_pairs(teacher, student_config.reflow)


@pytest.fixture(scope="module")
def student(teacher, student_config, pairs):
    return train(student_config, teacher.folder.root.parent / "student")


def velocity_field(run):
    return run.model.velocity_fn(run.params)


def test_pairs_are_trajectory_ends_of_the_teacher_or_real_data(teacher, pairs):
    examples = pairs.examples(np.arange(3000))
    real = np.arange(3000) % 4 == 3
    data = TEACHER.data.load("train").points()
    data_points = {tuple(row) for row in data}
    assert [tuple(row) in data_points for row in examples.x1] == real.tolist()
    assert len(np.unique(examples.x1[real], axis=0)) == 750  # All are distinct.
    forwards = sample(
        velocity_field(teacher), jnp.asarray(examples.x0[~real]), solver=RK4(), steps=STEPS
    )
    np.testing.assert_allclose(forwards.x1, examples.x1[~real], atol=1e-5)
    backwards = invert(
        velocity_field(teacher), jnp.asarray(examples.x1[real]), solver=RK4(), steps=STEPS
    )
    np.testing.assert_allclose(backwards.x0, examples.x0[real], atol=1e-5)


def test_missing_pairs_are_made_and_existing_pairs_kept(teacher, student_config, pairs):
    folder = pairs_folder(student_config.reflow)
    before = pairs.examples(np.arange(3000))
    shards = sorted(folder.glob("*.array_record"))
    assert len(shards) == 3
    modified_before = [shard.stat().st_mtime_ns for shard in shards]
    shards[1].unlink()
    regenerated = make_pairs(teacher, student_config.reflow)
    jax.tree.map(np.testing.assert_array_equal, regenerated.examples(np.arange(3000)), before)
    modified_after = [shard.stat().st_mtime_ns for shard in shards]
    assert [new == old for new, old in zip(modified_after, modified_before, strict=True)] == [
        True,
        False,
        True,
    ]


def test_pairs_do_not_depend_on_the_number_of_devices(teacher, student_config, pairs, tmp_path):
    mesh = make_mesh(devices=jax.devices()[:1])
    one_device_teacher = teacher._replace(
        mesh=mesh, params=jax.device_put(teacher.params, jax.devices()[0])
    )
    config = dataclasses.replace(student_config.reflow, pairs=str(tmp_path / "pairs"))
    assert teacher.mesh.size == 8
    actual, expected = (
        dataset.examples(np.arange(3000))
        for dataset in (make_pairs(one_device_teacher, config), pairs)
    )
    np.testing.assert_array_equal(actual.x0[0::4], expected.x0[0::4])
    np.testing.assert_allclose(actual.x1, expected.x1, atol=1e-5)


def test_reflow_straightens_trajectories_and_keeps_the_distribution(teacher, student):
    x0 = jnp.asarray(TEACHER.source.load("test").points(slice(1000)))
    real = jnp.asarray(TEACHER.data.load("test").points(slice(1000)))
    measure = jax.jit(lambda x0, p, run=teacher: straightness(run.model.velocity_fn(p), x0))
    before, after = (measure(x0, run.params) for run in (teacher, student))
    assert float(after.s.mean()) < 0.3 * float(before.s.mean())
    assert float(after.length_ratio.mean()) < float(before.length_ratio.mean())

    def endpoints(run):
        return sample(velocity_field(run), x0, solver=RK4(), steps=STEPS).x1

    def cost(x1):
        return float(jnp.mean(jnp.sum(jnp.square(x1 - x0), axis=1)))

    first, second = endpoints(teacher), endpoints(student)
    # Reflow does not increase convex costs (arXiv:2209.03003, theorem 3.5), up to the error of
    # the fit; random pairs cost more.
    random = cost(jax.random.permutation(jax.random.key(0), real))
    assert cost(second) < 1.03 * cost(first) < random
    ends = [float(sliced_wasserstein(jax.random.key(1), x1, real)) for x1 in (first, second, x0)]
    assert max(ends[:2]) < 0.25 * ends[2]
    one_step = x0 + student.model.velocity_fn(student.params)(jnp.zeros(1000), x0, None)
    error = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(one_step - second), axis=1)))
    displacement = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(second - x0), axis=1)))
    assert float(error / displacement) < 0.15


def test_two_dimensional_trajectories_are_saved_and_reported(student):
    measured = measure_straightness(student, TEACHER.sampling, 40)
    lines = np.asarray(read_straightness(student.folder.straightness).lines)
    np.testing.assert_array_equal(lines, np.asarray(measured.lines))
    x0 = run_source_points(student)(TEACHER.sampling.seed, np.arange(40))
    np.testing.assert_array_equal(lines[:, 0], x0)
    ends = sample(velocity_field(student), x0, solver=RK4(), steps=FixedSteps(uniform_grid(16))).x1
    np.testing.assert_allclose(lines[:, -1], ends, atol=1e-5)
    page = report_run(student).read_text(encoding="utf-8")
    assert "Trajectories in the plane" in page
    with Image.open(student.folder.root / "figures" / "lines.png") as picture:
        assert picture.width > 500
    document = json.loads(student.folder.straightness.read_text())
    del document["lines"]  # Earlier versions did not write them.
    student.folder.straightness.write_text(json.dumps(document))
    assert read_straightness(student.folder.straightness).lines == ()
    assert "Trajectories in the plane" not in report_run(student).read_text(encoding="utf-8")


def test_student_starts_from_the_weights_of_the_teacher(teacher, student_config, pairs, tmp_path):
    training = dataclasses.replace(TEACHER.training, num_steps=1)
    optimizer = dataclasses.replace(TEACHER.optimizer, learning_rate=1e-12, warmup_steps=0)
    config = dataclasses.replace(student_config, training=training, optimizer=optimizer)
    # This includes overwriting a run and restarting after an interrupted first checkpoint.
    (tmp_path / "killed" / "checkpoints" / "1.orbax-checkpoint-tmp").mkdir(parents=True)
    prepare(RunFolder(tmp_path / "new"), config, (2,), None)
    shutil.copytree(tmp_path / "new", tmp_path / "killed", dirs_exist_ok=True)
    for name, overwrite in (("new", False), ("new", True), ("killed", False)):
        run = train(config, tmp_path / name, overwrite=overwrite)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), run.params, teacher.params
        )


def test_student_does_not_depend_on_the_number_of_devices(
    teacher, student_config, pairs, tmp_path, monkeypatch
):
    training = dataclasses.replace(TEACHER.training, num_steps=5)
    optimizer = dataclasses.replace(TEACHER.optimizer, warmup_steps=0)
    config = dataclasses.replace(student_config, training=training, optimizer=optimizer)
    eight = train(dataclasses.replace(config, mesh=MeshConfig(2, 2, 2)), tmp_path / "eight")
    one_device = make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr("fmjax.jobs.train.train.make_mesh", lambda config: one_device)
    one = train(config, tmp_path / "one")
    leaves = zip(*(jax.tree.leaves(run.params) for run in (eight, one, teacher)), strict=True)
    changes = []
    for a, b, before in leaves:
        np.testing.assert_allclose(a, b, atol=1e-5)
        changes.append(np.abs(np.asarray(b) - before).max())
    assert max(changes) > 1e-3


def test_distilled_step_reaches_the_ends_of_the_pairs(student, tmp_path):
    student_folder = student.folder.root
    config = reflow_config(student.config, student_folder, distill=True)
    assert config.name == "teacher_2rf_distilled"
    assert config.loss.density == UniformSteps(1)
    assert (config.sampling.options.solver, config.sampling.options.num_steps) == ("euler", 1)
    reflow = dataclasses.replace(config.reflow, num_pairs=2000)
    config = dataclasses.replace(config, reflow=reflow)
    run = train(config, tmp_path / "distilled")
    x0 = jnp.asarray(TEACHER.source.load("test").points(slice(1000)))
    expected = sample(velocity_field(student), x0, solver=RK4(), steps=STEPS).x1

    def error(run):
        one_step = x0 + run.model.velocity_fn(run.params)(jnp.zeros(1000), x0, None)
        return float(jnp.sqrt(jnp.mean(jnp.square(one_step - expected))))

    assert error(run) < 0.6 * error(student)


def test_samples_between_datasets_start_from_the_source_dataset(teacher, tmp_path):
    # 20 samples do not fill two batches of 16; the padding must be removed.
    sampling = dataclasses.replace(TEACHER.sampling, num_samples=20, batch_size=16)
    samples = sample_from_run(teacher, sampling)
    x0 = run_source_points(teacher)(TEACHER.sampling.seed, np.arange(20))
    source_rows = {tuple(row) for row in TEACHER.source.load("test").points()}
    assert {tuple(row) for row in np.asarray(x0)} <= source_rows
    expected = sample(velocity_field(teacher), x0, solver=RK4(), steps=STEPS).x1
    np.testing.assert_allclose(samples.x1, expected, atol=1e-5)
    np.testing.assert_array_equal(samples.x0, x0)
    write_samples(samples, 400, tmp_path / "some")
    restored, step = read_samples(tmp_path / "some.npz")
    assert step == 400
    np.testing.assert_array_equal(restored.x0, x0)
    np.testing.assert_array_equal(restored.x1, samples.x1)


def test_source_noise_is_added_to_the_source_points(teacher):
    noisy = teacher._replace(config=dataclasses.replace(TEACHER, source_noise=0.5))
    indices = np.arange(2000)
    clean, noised = (np.asarray(run_source_points(run)(1, indices)) for run in (teacher, noisy))
    assert (noised - clean).std() == pytest.approx(0.5, rel=0.05)
    np.testing.assert_array_equal(run_source_points(noisy)(1, indices[7:9]), noised[7:9])
    assert reflow_config(noisy.config, teacher.folder.root).source_noise == 0.5
    with pytest.raises(ValueError, match="source_noise must be 0 without a source, got 0.5"):
        dataclasses.replace(TEACHER, source=None, source_noise=0.5)
    with pytest.raises(ValueError, match=r"source_noise must be at least 0.0, got -1.0"):
        dataclasses.replace(TEACHER, source_noise=-1.0)


def test_straightness_does_not_depend_on_the_number_of_devices(teacher, tmp_path):
    one_device_teacher = teacher._replace(
        mesh=make_mesh(devices=jax.devices()[:1]),
        params=jax.device_put(teacher.params, jax.devices()[0]),
        folder=RunFolder(tmp_path),
    )
    actual, expected = (
        measure_straightness(run, TEACHER.sampling, 20) for run in (one_device_teacher, teacher)
    )
    for name in ("s", "length_ratio", "cost", "deviation", "curvature"):
        np.testing.assert_allclose(getattr(actual, name), getattr(expected, name), rtol=1e-4)
    ends = np.asarray(expected.lines)[:, [0, -1]]
    assert expected.cost == pytest.approx(np.mean(np.square(ends[:, 1] - ends[:, 0])), rel=1e-5)


def test_reflow_config_names_and_settings_follow_the_teacher(tmp_path):
    config = reflow_config(TEACHER, tmp_path)
    assert config.name == "teacher_2rf"
    assert reflow_config(config, tmp_path).name == "teacher_3rf"
    assert config.loss.density == UShaped()
    assert config.reflow.sampling.options.solver == "rk4"
    guided_sampling = TEACHER.sampling.with_names(guidance=2.0)
    config = reflow_config(dataclasses.replace(TEACHER, sampling=guided_sampling), tmp_path)
    assert config.reflow.sampling.guidance == ClassifierFree(2.0)
    assert config.sampling.guidance is None


def test_steps_off_the_grid_of_a_shortcut_model_are_refused(teacher):
    config = dataclasses.replace(TEACHER, loss=ShortcutConfig(num_steps=8))
    run = teacher._replace(experiment=build(config, (2,), None))
    compare_config = CompareConfig(
        fixed_solvers=("flow_map",), adaptive_solvers=(), num_steps=(1, 3)
    )
    with pytest.raises(ValueError, match="num_steps must be a divisor of 8, the number of steps"):
        run_methods(run, compare_config)
    assert len(run_methods(run, dataclasses.replace(compare_config, num_steps=(1, 8)))) == 1
    shifted = dataclasses.replace(compare_config, num_steps=(1,), grids=("shifted",))
    with pytest.raises(ValueError, match="grid must be uniform for a shortcut model"):
        run_methods(run, shifted)


def test_likelihood_is_refused_between_datasets(teacher):
    with pytest.raises(ValueError, match="run must have noise as its source distribution"):
        likelihood_run(teacher, LikelihoodConfig())


def test_unsuitable_or_damaged_pairs_are_refused(teacher, student_config, tmp_path):
    config = dataclasses.replace(
        student_config.reflow, pairs=str(tmp_path / "pairs"), num_pairs=1500
    )
    make_pairs(teacher, config)
    other_steps = dataclasses.replace(config, sampling=config.sampling.with_names(num_steps=4))
    message = "made with the same settings, got different origin.sampling.num_steps"
    with pytest.raises(ValueError, match=message):
        make_pairs(teacher, other_steps)
    with pytest.raises(ValueError, match=r"different origin.step, origin.weights"):
        make_pairs(teacher._replace(step=7), config)
    other_seed = dataclasses.replace(TEACHER.training, seed=1, num_steps=400)
    twin = train(dataclasses.replace(TEACHER, training=other_seed), tmp_path / "twin")
    with pytest.raises(ValueError, match=r"got different origin.weights$"):
        make_pairs(twin, config)
    with pytest.raises(ValueError, match=r"must hold pairs of x0 float32\[3\].*got.*\[2\]"):
        open_pairs(tmp_path / "pairs", (3,), None)
    shard = next((tmp_path / "pairs").glob("*.array_record"))
    shard_bytes = shard.read_bytes()
    shard.write_bytes(shard_bytes[: len(shard_bytes) // 2])
    with pytest.raises(ValueError, match=rf"file .*{shard.name} must be a complete shard of \d+"):
        make_pairs(teacher, config)
    with pytest.raises(ValueError, match="coupling must be Independent for reflow"):
        dataclasses.replace(student_config, coupling=MinibatchOT())
    with pytest.raises(ValueError, match=r"reflow.real_share must lie in \[0.0, 1.0\]"):
        ReflowConfig("x", real_share=1.5)
    with pytest.raises(ValueError, match="sampling.solver must be an ODE solver if real_share"):
        ReflowConfig("x", real_share=0.5, sampling=Sampling.of(solver="ddim", num_steps=4))
    with pytest.raises(ValueError, match="run folder must exist, got .*nowhere"):
        train(dataclasses.replace(student_config, reflow=ReflowConfig("nowhere")), tmp_path / "run")
    without_source = dataclasses.replace(student_config, data=ToyData("spirals"), source=None)
    other_network = dataclasses.replace(without_source, network=MLPConfig(width=32, num_layers=2))
    with pytest.raises(ValueError, match=r"reflow.warm_start must be off \(--reflow.no-warm-start"):
        train(other_network, tmp_path / "wider")
    assert not (tmp_path / "wider").exists()


def test_pairs_and_samples_start_from_different_source_points(teacher, pairs):
    sample_x0 = np.asarray(run_source_points(teacher)(TEACHER.sampling.seed, np.arange(3000)))
    x0 = pairs.examples(np.arange(3000)).x0
    generated_x0 = x0[np.arange(3000) % 4 != 3]
    assert not {tuple(row) for row in sample_x0} & {tuple(row) for row in generated_x0}
    assert len(np.unique(generated_x0, axis=0)) == len(generated_x0)


def test_reflow_config_uses_a_linear_path_for_any_teacher(tmp_path):
    ddpm = dataclasses.replace(
        TEACHER,
        path=AffinePath(LinearBetas()),
        source=None,
        loss=LossConfig(prediction=Prediction.X0, space=Prediction.X0),
        sampling=Sampling.of(slots=4, clip=None),
    )
    flow_map = dataclasses.replace(
        TEACHER,
        loss=MeanFlowConfig(),
        compare=CompareConfig(fixed_solvers=("flow_map", "euler")),
        sampling=Sampling.of(solver="flow_map", num_steps=1),
    )
    for teacher_config in (ddpm, flow_map):
        for distill in (False, True):
            config = reflow_config(teacher_config, tmp_path, distill=distill)
            assert (config.path, config.loss.prediction) == (AffinePath(), Prediction.VELOCITY)
            assert not config.reflow.warm_start
            assert config.reflow.sampling.options.solver == teacher_config.sampling.options.solver
            config.sampling.steps(build(config, (2,), None).model)


def test_interrupted_pair_generation_resumes(teacher, student_config, tmp_path):
    config = dataclasses.replace(
        student_config.reflow, pairs=str(tmp_path / "pairs"), num_pairs=20_000
    )
    script = tmp_path / "make.py"
    script.write_text(
        "import json, sys\n"
        "from fmjax.config import ReflowConfig, Sampling\n"
        "from fmjax.jobs.train.pairs import make_pairs\n"
        "from fmjax.runs.folder import open_run\n"
        f"sampling = Sampling.of(solver='rk4', num_steps=8, batch_size=100)\n"
        f"config = ReflowConfig({str(teacher.folder.root)!r}, {config.pairs!r}, 20_000,\n"
        "                      0.25, sampling)\n"
        "pairs = make_pairs(open_run(config.teacher), config)\n"
        "print(json.dumps([len(pairs), float(pairs.examples(range(20_000)).x1.sum())]))\n"
    )
    command = [sys.executable, str(script)]
    for _ in range(3):
        child = subprocess.Popen(command, env=environment())
        before = len(list((tmp_path / "pairs").glob("[0-9]*.array_record")))
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "pairs").glob("[0-9]*.array_record"))) < before + 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert not (tmp_path / "pairs" / "00019-of-00020.array_record").exists()
    process = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    resumed = json.loads(process.stdout.splitlines()[-1])
    script.write_text(script.read_text().replace(config.pairs, config.pairs + "2"))
    process = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert resumed == json.loads(process.stdout.splitlines()[-1])
    assert open_run(teacher.folder.root).step == 400
