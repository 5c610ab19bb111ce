"""Tests that checkpoints are saved, restored and checked for damage."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fmjax.paths import VelocityNet
from fmjax.sharding import MeshConfig, make_mesh, put_batch, with_shardings
from fmjax.training import (
    Checkpoints,
    OptimizerConfig,
    TrainState,
    init_state,
    make_optimizer,
    make_train_step,
    restore_ema,
)
from fmjax.training.checkpoints import reader
from fmjax.training.checkpoints.digests import write_digests
from tests.training.tiny import Points, make_net, make_objective

EXTRA = {"batches": {"position": 3}, "window": [[0.1, 2.0]]}


def make_state(name="adamw", layout=(8, 1), net=None, key=None) -> TrainState:
    net = make_net() if net is None else net
    optimizer = make_optimizer(OptimizerConfig(name=name), 10)
    key = jax.random.key(0) if key is None else key
    return init_state(net, optimizer, key, make_mesh(MeshConfig(*layout)))[0]


def host_arrays(state):
    """Return all arrays of a state on the host, with the key as its data."""
    return jax.device_get(state._replace(key=jax.random.key_data(state.key)))


def assert_states_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, host_arrays(a), host_arrays(b))
    assert jax.random.key_impl(a.key) == jax.random.key_impl(b.key)


@pytest.fixture(scope="module")
def state():
    return make_state()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, state):
    """Create a folder with one checkpoint of step 0, which tests must not change."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state, EXTRA)
    return folder


def copy_checkpoints(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


@pytest.mark.parametrize("text", ["[]", '{"a":' * 100_000, "1e400", '{"item_handlers": 3}'])
def test_unreadable_step_metadata_is_named_in_the_error(saved, state, tmp_path, text):
    folder = copy_checkpoints(saved, tmp_path)
    (folder / "0" / "_CHECKPOINT_METADATA").write_text(text)
    with pytest.raises(ValueError, match=r"0/_CHECKPOINT_METADATA must (hold|be) [^\n]+$"):
        Checkpoints(folder)
    with pytest.raises(ValueError, match=r"0/_CHECKPOINT_METADATA must (hold|be) [^\n]+$"):
        restore_ema(folder, state.params)


def test_opening_the_folder_removes_partial_checkpoints(saved, state, tmp_path):
    folder = copy_checkpoints(saved, tmp_path)
    partial = folder / "2.orbax-checkpoint-tmp" / "state"
    for number in range(300):
        (partial / f"{number}").mkdir(parents=True)
        (partial / f"{number}" / "a").touch()
    # Reflow and fine-tuning open the folder twice.
    with Checkpoints(folder):
        assert not partial.parent.exists()
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state._replace(step=state.step + 2), EXTRA)
    assert sorted(file.name for file in folder.iterdir()) == ["0", "2"]


@pytest.mark.parametrize("layout", [(8, 1), (1, 8), (4, 2)])
def test_state_restores_exactly_on_any_mesh(saved, state, layout):
    like = make_state(layout=layout, key=jax.random.key(1))
    with Checkpoints(saved) as checkpoints:
        restored, extra, warnings = checkpoints.restore(like)
    assert_states_equal(restored, state)
    assert extra == EXTRA
    assert warnings == ()
    for leaf, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
        assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)


def test_state_restores_from_shapes_and_shardings(saved, state):
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    with Checkpoints(saved) as checkpoints:
        assert_states_equal(checkpoints.restore(like).state, state)


def test_muon_state_and_rbg_key_restore_exactly(tmp_path):
    state = make_state("muon", key=jax.random.key(5, impl="rbg"))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {})
        checkpoints.wait()
        assert_states_equal(checkpoints.restore(state).state, state)


@pytest.mark.slow
def test_state_can_be_donated_while_it_is_saved(tmp_path):
    mesh, net = make_mesh(), make_net()
    optimizer = make_optimizer(OptimizerConfig(), 10)
    state, sharding = init_state(net, optimizer, jax.random.key(0), mesh)
    step = make_train_step(make_objective(net), optimizer, mesh=mesh, state_sharding=sharding)
    batches, expected = Points(), {}
    with Checkpoints(tmp_path, max_to_keep=9) as checkpoints:
        for number in range(1, 4):
            state, _ = step(state, put_batch(next(batches), mesh))
            expected[number] = host_arrays(state)
            checkpoints.save(state, {})
        state, _ = step(state, put_batch(next(batches), mesh))
        checkpoints.wait()
        for number, values in expected.items():
            restored = checkpoints.restore(state, number).state
            jax.tree.map(np.testing.assert_array_equal, host_arrays(restored), values)


def test_only_the_newest_checkpoints_are_kept(tmp_path, state):
    with Checkpoints(tmp_path, max_to_keep=2) as checkpoints:
        assert checkpoints.latest_step() is None
        for step in (1, 2, 3):
            checkpoints.save(state._replace(step=jnp.int32(step)), {})
        checkpoints.wait()
        assert checkpoints.latest_step() == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["2", "3"]


def test_partial_checkpoint_is_ignored_and_removed(saved, state, tmp_path):
    folder = copy_checkpoints(saved, tmp_path)
    leftover = folder / "7.orbax-checkpoint-tmp"
    (folder / "0").rename(leftover)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(state, {})
    assert [file.name for file in folder.iterdir()] == ["0"]


def test_averaged_weights_restore_without_the_state(saved, state):
    abstract = jax.eval_shape(make_net().init, jax.random.key(0))
    sharded = with_shardings(abstract, make_mesh(MeshConfig(1, 8)))
    for params, step in (
        restore_ema(saved, abstract),
        restore_ema(saved, sharded, step=0),
    ):
        jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(state.ema_params))
        assert step == 0
    assert params["hidden"]["kernel"].addressable_shards[0].data.size == 64 * 64 // 8
    # Reading writes no files.
    assert not any("tmp" in file.name for file in saved.iterdir())


def test_damage_is_detected_in_every_needed_file(saved, state, tmp_path):
    """Orbax's top-level files are not needed to read the checkpoint."""
    folder = copy_checkpoints(saved, tmp_path)
    files = [file for file in sorted((folder / "0").rglob("*")) if file.is_file()]
    needed = [file for file in files if file.parent != folder / "0" or file.name == "digests.json"]
    assert len(needed) > 15
    with Checkpoints(folder) as checkpoints:
        for number, file in enumerate(needed):
            content = file.read_bytes()
            middle = len(content) // 2
            flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            for damaged in (flipped, content[:middle], None)[: 3 if number % 5 == 0 else 1]:
                file.unlink() if damaged is None else file.write_bytes(damaged)
                message = f"checkpoint of step 0 in {folder} must be undamaged, got "
                with pytest.raises(ValueError, match=message) as error:
                    checkpoints.restore(state)
                assert "\n" not in str(error.value)
                file.write_bytes(content)
        assert_states_equal(checkpoints.restore(state).state, state)


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_damaged_checkpoint_is_moved_and_previous_one_restored(saved, state, tmp_path):
    folder = copy_checkpoints(saved, tmp_path)
    later = state._replace(step=state.step + 7)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(later, EXTRA)
    flip_a_bit(next((folder / "7" / "ema_params").rglob("d/*")))
    message = f"checkpoint of step 7 in {folder} must be undamaged, got a damaged file ema_params/"
    with pytest.warns(UserWarning, match=f"{message}.*; using the checkpoint of step 0 instead"):
        params, step = restore_ema(folder, jax.eval_shape(lambda: state.ema_params))
    assert step == 0
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(ValueError, match=message):
            checkpoints.restore(state, 7)
        restored, _, (warning,) = checkpoints.restore(state)
        assert_states_equal(restored, state)
        assert warning.startswith(message)
        assert warning.endswith(f"it was moved to {folder / 'damaged'}")
        # The step can be saved again.
        assert checkpoints.latest_step() == 0
        checkpoints.save(later, EXTRA)
        checkpoints.wait()
        assert int(checkpoints.restore(state).state.step) == 7
    assert (folder / "damaged" / "7" / "digests.json").is_file()


def test_orbax_read_error_is_reported_as_damage(saved, state, tmp_path):
    """The digests match the damaged file, so Orbax finds the damage."""
    folder = copy_checkpoints(saved, tmp_path)
    (folder / "0" / "run" / "metadata").write_text("{")
    (folder / "0" / "digests.json").unlink()
    write_digests(folder / "0", ("run",))
    message = f"checkpoint of step 0 in {folder} must be undamaged"
    with Checkpoints(folder) as checkpoints, pytest.raises(ValueError, match=message):
        checkpoints.restore(state)


def wider_net() -> VelocityNet:
    net = make_net()

    def init(key):
        params = net.init(key)
        return params | {"first": {"kernel": jnp.zeros((5, 32)), "bias": jnp.zeros(32)}}

    return VelocityNet(init, net.apply)


def test_checkpoint_of_another_model_or_optimizer_is_rejected(saved, state, tmp_path):
    message = f"checkpoint of step 0 in {saved} must match the model and optimizer, got "
    cases = {
        "ema_params.first.bias: float32\\[64\\] in the checkpoint, float32\\[32\\] in": make_state(
            net=wider_net()
        ),
        "state.opt_state.*: int32\\[\\] in the checkpoint, nothing in the run": make_state("muon"),
        "random keys of 'threefry2x32', not 'rbg'": make_state(key=jax.random.key(0, impl="rbg")),
    }
    with Checkpoints(saved) as checkpoints:
        for difference, like in cases.items():
            with pytest.raises(ValueError, match=message + difference):
                checkpoints.restore(like)
    with pytest.raises(ValueError, match=message + "ema_params.first.bias"):
        restore_ema(saved, jax.eval_shape(wider_net().init, jax.random.key(0)))


def test_checkpoint_of_another_program_is_rejected(state, tmp_path):
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(4, args=ocp.args.StandardSave({"w": np.ones(3)}))
    message = f"checkpoint of step 4 in {tmp_path} must match the model .* one without run"
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=message):
        checkpoints.restore(state)


def test_run_metadata_not_written_by_fmjax_is_rejected(saved, state, tmp_path):
    folder = copy_checkpoints(saved, tmp_path)
    (folder / "0" / "run" / "metadata").write_text("{}")
    (folder / "0" / "digests.json").unlink()
    write_digests(folder / "0", ("run",))
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(ValueError, match="not written by fm"),
    ):
        checkpoints.restore(state)


def test_folder_without_checkpoints_is_rejected(saved, state, tmp_path):
    message = f"checkpoint folder must contain a checkpoint, got none in {tmp_path}"
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=message):
        checkpoints.restore(state)
    with pytest.raises(ValueError, match="checkpoint folder must exist, got .*nowhere"):
        restore_ema(tmp_path / "nowhere", state.params)
    message = "checkpoint step must be one of \\[0\\], got 3"
    with Checkpoints(saved) as checkpoints, pytest.raises(ValueError, match=message):
        checkpoints.restore(state, 3)


def test_folder_that_cannot_be_created_is_rejected(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="checkpoint folder must be writable, got .*file/here"):
        Checkpoints(tmp_path / "file" / "here")
    with pytest.raises(ValueError, match="max_to_keep must be at least 1, got 0"):
        Checkpoints(tmp_path, max_to_keep=0)


def test_weights_restore_while_training_replaces_checkpoints(tmp_path, state, monkeypatch):
    """If a checkpoint is deleted while it is read, the newer one is read instead."""
    like = jax.eval_shape(make_net().init, jax.random.key(0))
    find_damage, later = reader.find_damage, state._replace(step=state.step + 1)
    with Checkpoints(tmp_path, max_to_keep=1) as writer:
        writer.save(state, EXTRA)
        writer.wait()
        saves = iter([later])

        def save_and_find_damage(folder, *args):
            for later_state in saves:
                writer.save(later_state, EXTRA)
                writer.wait()
                assert not folder.exists()
            return find_damage(folder, *args)

        monkeypatch.setattr(reader, "find_damage", save_and_find_damage)
        params, step = restore_ema(tmp_path, like)
    assert step == 1
    jax.tree.map(np.testing.assert_array_equal, params, state.ema_params)
