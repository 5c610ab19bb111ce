"""Reflow from end to end on two-dimensional points: pairs on disk, the next flow, one step."""

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
    SamplingConfig,
    ShortcutConfig,
    TrainingConfig,
    build,
    guided,
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
from fmjax.runs.sampling.files import (
    read_samples,
    write_samples,
)
from fmjax.runs.sampling.run_samples import sample_from_run
from fmjax.runs.sampling.source_points import run_source_points
from fmjax.sharding import MeshConfig, make_mesh
from fmjax.solvers import FixedSteps, invert, sample
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
    sampling=SamplingConfig(solver="rk4", num_steps=8, batch_size=1000),
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return train(TEACHER, tmp_path_factory.mktemp("reflow") / "teacher")


@pytest.fixture(scope="module")
def asked(teacher):
    config = reflow_config(TEACHER, teacher.folder.root)
    reflow = dataclasses.replace(config.reflow, num_pairs=3000, real_share=0.25)
    return dataclasses.replace(config, reflow=reflow)


@pytest.fixture(scope="module")
def pairs(teacher, asked):
    return make_pairs(teacher, asked.reflow)


@pytest.fixture(scope="module")
def student(teacher, asked, pairs):
    return train(asked, teacher.folder.root.parent / "student")


def field_of(run):
    return guided(run.experiment, run.params, 1.0)


def test_pairs_are_ends_of_the_teachers_paths_and_a_share_of_them_ends_at_real_data(teacher, pairs):
    found = pairs.examples(np.arange(3000))
    real = np.arange(3000) % 4 == 3
    data = TEACHER.data.load("train").points()
    key = {tuple(row) for row in data}
    assert [tuple(row) in key for row in found.x1] == real.tolist()
    assert len(np.unique(found.x1[real], axis=0)) == 750  # None of them twice.
    forwards = sample(field_of(teacher), jnp.asarray(found.x0[~real]), solver=RK4(), steps=STEPS)
    np.testing.assert_allclose(forwards.x1, found.x1[~real], atol=1e-5)
    backwards = invert(field_of(teacher), jnp.asarray(found.x1[real]), solver=RK4(), steps=STEPS)
    np.testing.assert_allclose(backwards.x0, found.x0[real], atol=1e-5)


def test_pairs_that_are_missing_are_made_and_others_kept(teacher, asked, pairs):
    folder = pairs_folder(asked.reflow)
    before = pairs.examples(np.arange(3000))
    shards = sorted(folder.glob("*.array_record"))
    assert len(shards) == 3
    stamps = [path.stat().st_mtime_ns for path in shards]
    shards[1].unlink()
    again = make_pairs(teacher, asked.reflow)
    jax.tree.map(np.testing.assert_array_equal, again.examples(np.arange(3000)), before)
    after = [path.stat().st_mtime_ns for path in shards]
    assert [a == b for a, b in zip(after, stamps, strict=True)] == [True, False, True]


def test_eight_devices_make_the_pairs_of_one(teacher, asked, pairs, tmp_path):
    one = make_mesh(devices=jax.devices()[:1])
    alone = teacher._replace(mesh=one, params=jax.device_put(teacher.params, jax.devices()[0]))
    config = dataclasses.replace(asked.reflow, pairs=str(tmp_path / "pairs"))
    assert teacher.mesh.size == 8
    found, others = (p.examples(np.arange(3000)) for p in (make_pairs(alone, config), pairs))
    np.testing.assert_array_equal(found.x0[0::4], others.x0[0::4])
    np.testing.assert_allclose(found.x1, others.x1, atol=1e-5)


def test_reflow_straightens_paths_rewires_crossings_and_keeps_the_ends(teacher, student):
    x0 = jnp.asarray(TEACHER.source.load("test").points(slice(1000)))
    real = jnp.asarray(TEACHER.data.load("test").points(slice(1000)))
    measured = jax.jit(lambda x, p, run=teacher: straightness(guided(run.experiment, p, 1.0), x))
    before, after = (measured(x0, run.params) for run in (teacher, student))
    assert float(after.s.mean()) < 0.3 * float(before.s.mean())
    assert float(after.length_ratio.mean()) < float(before.length_ratio.mean())

    def moved(run):
        return sample(field_of(run), x0, solver=RK4(), steps=STEPS).x1

    def cost(x1):
        return float(jnp.mean(jnp.sum(jnp.square(x1 - x0), axis=1)))

    first, second = moved(teacher), moved(student)
    # Convex costs never rise from one flow to the next (arXiv:2209.03003, theorem 3.5), up to
    # what the fit is wrong by; random pairs cost more than either.
    random = cost(jax.random.permutation(jax.random.key(0), real))
    assert cost(second) < 1.03 * cost(first) < random
    ends = [float(sliced_wasserstein(jax.random.key(1), x, real)) for x in (first, second, x0)]
    assert max(ends[:2]) < 0.25 * ends[2]
    one_step = x0 + student.experiment.velocity_fn(student.params)(jnp.zeros(1000), x0, None)
    far = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(one_step - second), axis=1)))
    whole = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(second - x0), axis=1)))
    assert float(far / whole) < 0.15


def test_paths_in_the_plane_are_kept_and_drawn(student):
    found = measure_straightness(student, TEACHER.sampling, 40)
    lines = np.asarray(read_straightness(student.folder.straightness).lines)
    np.testing.assert_array_equal(lines, np.asarray(found.lines))
    x0 = run_source_points(student)(TEACHER.sampling.seed, np.arange(40))
    np.testing.assert_array_equal(lines[:, 0], x0)
    ends = sample(field_of(student), x0, solver=RK4(), steps=FixedSteps(uniform_grid(16))).x1
    np.testing.assert_allclose(lines[:, -1], ends, atol=1e-5)
    page = report_run(student).read_text(encoding="utf-8")
    assert "Trajectories in the plane" in page
    with Image.open(student.folder.root / "figures" / "lines.png") as picture:
        assert picture.width > 500
    whole = json.loads(student.folder.straightness.read_text())
    del whole["lines"]  # As files of before have none.
    student.folder.straightness.write_text(json.dumps(whole))
    assert read_straightness(student.folder.straightness).lines == ()
    assert "Trajectories in the plane" not in report_run(student).read_text(encoding="utf-8")


def test_the_student_starts_from_the_teachers_weights(teacher, asked, pairs, tmp_path):
    training = dataclasses.replace(TEACHER.training, num_steps=1)
    optimizer = dataclasses.replace(TEACHER.optimizer, learning_rate=1e-12, warmup_steps=0)
    config = dataclasses.replace(asked, training=training, optimizer=optimizer)
    # Also in place of a run, and after a kill while the first checkpoint was written.
    (tmp_path / "killed" / "checkpoints" / "1.orbax-checkpoint-tmp").mkdir(parents=True)
    prepare(RunFolder(tmp_path / "new"), config, (2,), None)
    shutil.copytree(tmp_path / "new", tmp_path / "killed", dirs_exist_ok=True)
    for name, overwrite in (("new", False), ("new", True), ("killed", False)):
        run = train(config, tmp_path / name, overwrite=overwrite)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), run.params, teacher.params
        )


def test_eight_devices_train_the_student_of_one(teacher, asked, pairs, tmp_path, monkeypatch):
    training = dataclasses.replace(TEACHER.training, num_steps=5)
    optimizer = dataclasses.replace(TEACHER.optimizer, warmup_steps=0)
    config = dataclasses.replace(asked, training=training, optimizer=optimizer)
    eight = train(dataclasses.replace(config, mesh=MeshConfig(2, 2, 2)), tmp_path / "eight")
    alone = make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr("fmjax.jobs.train.train.make_mesh", lambda config: alone)
    one = train(config, tmp_path / "one")
    pairs_of = zip(*(jax.tree.leaves(run.params) for run in (eight, one, teacher)), strict=True)
    moved = []
    for a, b, before in pairs_of:
        np.testing.assert_allclose(a, b, atol=1e-5)
        moved.append(np.abs(np.asarray(b) - before).max())
    assert max(moved) > 1e-3


def test_a_distilled_step_goes_where_the_pairs_say(student, tmp_path):
    path = student.folder.root
    config = reflow_config(student.config, path, distill=True)
    assert config.name == "teacher_2rf_distilled"
    assert config.loss.density == UniformSteps(1)
    assert (config.sampling.solver, config.sampling.num_steps) == ("euler", 1)
    reflow = dataclasses.replace(config.reflow, num_pairs=2000)
    config = dataclasses.replace(config, reflow=reflow)
    run = train(config, tmp_path / "distilled")
    x0 = jnp.asarray(TEACHER.source.load("test").points(slice(1000)))
    wanted = sample(field_of(student), x0, solver=RK4(), steps=STEPS).x1

    def error(run):
        one_step = x0 + run.experiment.velocity_fn(run.params)(jnp.zeros(1000), x0, None)
        return float(jnp.sqrt(jnp.mean(jnp.square(one_step - wanted))))

    assert error(run) < 0.6 * error(student)


def test_samples_of_a_flow_between_data_sets_start_from_the_first(teacher, tmp_path):
    # In batches that do not divide them: what fills the last one up is not among them.
    asked = dataclasses.replace(TEACHER.sampling, num_samples=20, batch_size=16)
    drawn = sample_from_run(teacher, asked)
    x0 = run_source_points(teacher)(TEACHER.sampling.seed, np.arange(20))
    rows = {tuple(row) for row in TEACHER.source.load("test").points()}
    assert {tuple(row) for row in np.asarray(x0)} <= rows
    expected = sample(field_of(teacher), x0, solver=RK4(), steps=STEPS).x1
    np.testing.assert_allclose(drawn.x1, expected, atol=1e-5)
    np.testing.assert_array_equal(drawn.x0, x0)
    write_samples(drawn, 400, tmp_path / "some")
    found, step = read_samples(tmp_path / "some.npz")
    assert step == 400
    np.testing.assert_array_equal(found.x0, x0)
    np.testing.assert_array_equal(found.x1, drawn.x1)


def test_noise_of_the_source_is_in_what_samples_start_from(teacher):
    noisy = teacher._replace(config=dataclasses.replace(TEACHER, source_noise=0.5))
    numbers = np.arange(2000)
    plain, found = (np.asarray(run_source_points(run)(1, numbers)) for run in (teacher, noisy))
    assert (found - plain).std() == pytest.approx(0.5, rel=0.05)
    np.testing.assert_array_equal(run_source_points(noisy)(1, numbers[7:9]), found[7:9])
    assert reflow_config(noisy.config, teacher.folder.root).source_noise == 0.5
    with pytest.raises(ValueError, match="source_noise must be 0 without a source, got 0.5"):
        dataclasses.replace(TEACHER, source=None, source_noise=0.5)
    with pytest.raises(ValueError, match=r"source_noise must be at least 0.0, got -1.0"):
        dataclasses.replace(TEACHER, source_noise=-1.0)


def test_one_device_follows_the_paths_of_eight(teacher, tmp_path):
    alone = teacher._replace(
        mesh=make_mesh(devices=jax.devices()[:1]),
        params=jax.device_put(teacher.params, jax.devices()[0]),
        folder=RunFolder(tmp_path),
    )
    found, others = (measure_straightness(run, TEACHER.sampling, 20) for run in (alone, teacher))
    for name in ("s", "length_ratio", "cost", "deviation", "curvature"):
        np.testing.assert_allclose(getattr(found, name), getattr(others, name), rtol=1e-4)
    ends = np.asarray(others.lines)[:, [0, -1]]
    assert others.cost == pytest.approx(np.mean(np.square(ends[:, 1] - ends[:, 0])), rel=1e-5)


def test_the_next_flow_is_named_and_trained_by_what_is_in_the_pairs(tmp_path):
    config = reflow_config(TEACHER, tmp_path)
    assert config.name == "teacher_2rf"
    assert reflow_config(config, tmp_path).name == "teacher_3rf"
    assert config.loss.density == UShaped()
    assert config.reflow.sampling.solver == "rk4"
    guided_one = dataclasses.replace(TEACHER.sampling, guidance=2.0)
    config = reflow_config(dataclasses.replace(TEACHER, sampling=guided_one), tmp_path)
    assert (config.reflow.sampling.guidance, config.sampling.guidance) == (2.0, 1.0)


def test_jumps_off_the_grid_of_a_shortcut_model_are_not_compared(teacher):
    config = dataclasses.replace(TEACHER, loss=ShortcutConfig(num_steps=8))
    run = teacher._replace(experiment=build(config, (2,), None))
    asked = CompareConfig(fixed_solvers=("flow_map",), adaptive_solvers=(), num_steps=(1, 3))
    with pytest.raises(ValueError, match="num_steps must be a divisor of 8, the steps of the grid"):
        run_methods(run, asked)
    assert len(run_methods(run, dataclasses.replace(asked, num_steps=(1, 8)))) == 1
    grids = dataclasses.replace(asked, num_steps=(1,), grids=("shifted",))
    with pytest.raises(ValueError, match="grid must be uniform for a shortcut model"):
        run_methods(run, grids)


def test_what_wants_noise_to_start_from_is_refused_between_data_sets(teacher):
    with pytest.raises(ValueError, match="run must have noise as its source distribution"):
        likelihood_run(teacher, LikelihoodConfig())


def test_pairs_made_otherwise_cut_short_or_of_other_points_are_refused(teacher, asked, tmp_path):
    config = dataclasses.replace(asked.reflow, pairs=str(tmp_path / "pairs"), num_pairs=1500)
    make_pairs(teacher, config)
    other = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, num_steps=4))
    message = "made with the same settings, got different about.sampling.num_steps"
    with pytest.raises(ValueError, match=message):
        make_pairs(teacher, other)
    with pytest.raises(ValueError, match=r"different about.step, about.weights"):
        make_pairs(teacher._replace(step=7), config)
    seed = dataclasses.replace(TEACHER.training, seed=1, num_steps=400)
    twin = train(dataclasses.replace(TEACHER, training=seed), tmp_path / "twin")
    with pytest.raises(ValueError, match=r"got different about.weights$"):
        make_pairs(twin, config)
    with pytest.raises(ValueError, match=r"must hold pairs of x0 float32\[3\].*got.*\[2\]"):
        open_pairs(tmp_path / "pairs", (3,), None)
    shard = next((tmp_path / "pairs").glob("*.array_record"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"file .*{shard.name} must be a complete shard of \d+"):
        make_pairs(teacher, config)
    with pytest.raises(ValueError, match="coupling must be Independent for reflow"):
        dataclasses.replace(asked, coupling=MinibatchOT())
    with pytest.raises(ValueError, match=r"reflow.real_share must lie in \[0.0, 1.0\]"):
        ReflowConfig("x", real_share=1.5)
    with pytest.raises(ValueError, match="sampling.solver must be an ODE solver if real_share"):
        ReflowConfig("x", real_share=0.5, sampling=SamplingConfig(solver="ddim", num_steps=4))
    with pytest.raises(ValueError, match="run folder must exist, got .*nowhere"):
        train(dataclasses.replace(asked, reflow=ReflowConfig("nowhere")), tmp_path / "run")
    images = dataclasses.replace(asked, data=ToyData("spirals"), source=None)
    wider = dataclasses.replace(images, network=MLPConfig(width=32, num_layers=2))
    with pytest.raises(ValueError, match=r"reflow.warm_start must be off \(--reflow.no-warm-start"):
        train(wider, tmp_path / "wider")
    assert not (tmp_path / "wider").exists()


def test_pairs_start_from_other_points_than_samples_do(teacher, pairs):
    starts = np.asarray(run_source_points(teacher)(TEACHER.sampling.seed, np.arange(3000)))
    found = pairs.examples(np.arange(3000)).x0
    generated = found[np.arange(3000) % 4 != 3]
    assert not {tuple(row) for row in starts} & {tuple(row) for row in generated}
    assert len(np.unique(generated, axis=0)) == len(generated)


def test_the_next_flow_is_one_of_straight_lines_whatever_the_teacher_was(tmp_path):
    ddpm = dataclasses.replace(
        TEACHER,
        path=AffinePath(LinearBetas()),
        source=None,
        loss=LossConfig(prediction=Prediction.X0, space=Prediction.X0),
        sampling=SamplingConfig(slots=4, clip=None),
    )
    flow_map = dataclasses.replace(
        TEACHER,
        loss=MeanFlowConfig(),
        compare=CompareConfig(fixed_solvers=("flow_map", "euler")),
        sampling=SamplingConfig(solver="flow_map", num_steps=1),
    )
    for other in (ddpm, flow_map):
        for distill in (False, True):
            config = reflow_config(other, tmp_path, distill=distill)
            assert (config.path, config.loss.prediction) == (AffinePath(), Prediction.VELOCITY)
            assert not config.reflow.warm_start
            assert config.reflow.sampling.solver == other.sampling.solver
            build(config, (2,), None)
            config.sampling.make_steps()


def test_making_pairs_goes_on_after_a_kill(teacher, asked, tmp_path):
    config = dataclasses.replace(asked.reflow, pairs=str(tmp_path / "pairs"), num_pairs=20_000)
    script = tmp_path / "make.py"
    script.write_text(
        "import json, sys\n"
        "from fmjax.config import ReflowConfig, SamplingConfig\n"
        "from fmjax.jobs.train.pairs import make_pairs\n"
        "from fmjax.runs.folder import open_run\n"
        f"sampling = SamplingConfig(solver='rk4', num_steps=8, batch_size=100)\n"
        f"config = ReflowConfig({str(teacher.folder.root)!r}, {config.pairs!r}, 20_000,\n"
        "                      0.25, sampling)\n"
        "pairs = make_pairs(open_run(config.teacher), config)\n"
        "print(json.dumps([len(pairs), float(pairs.examples(range(20_000)).x1.sum())]))\n"
    )
    command = [sys.executable, str(script)]
    for _ in range(3):
        process = subprocess.Popen(command, env=environment())
        before = len(list((tmp_path / "pairs").glob("[0-9]*.array_record")))
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "pairs").glob("[0-9]*.array_record"))) < before + 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "pairs" / "00019-of-00020.array_record").exists()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    broken = json.loads(done.stdout.splitlines()[-1])
    script.write_text(script.read_text().replace(config.pairs, config.pairs + "2"))
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert broken == json.loads(done.stdout.splitlines()[-1])
    assert open_run(teacher.folder.root).step == 400
