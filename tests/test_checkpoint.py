"""Checkpoints: exact round trips, keep-last-n, damage, misfits."""

import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from irl_jax import checkpoint
from irl_jax.errors import UserError
from irl_jax.types import TrainState


def make_state(seed=0, width=5):
    keys = jax.random.split(jax.random.key(seed), 2)
    leaves = {
        "adapter": {"a": jax.random.normal(keys[0], (3, width)), "b": jax.random.normal(keys[1], (width,)).astype(jnp.bfloat16)}
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    opt_state = optimizer.init(leaves)
    return TrainState(leaves, opt_state, jnp.asarray(seed, jnp.int32))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape and np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_round_trip_keeps_structure_bits_and_dtypes(tmp_path):
    tree = {"state": make_state(3), "third": np.asarray(1 / 3), "count": np.asarray(2**40)}
    checkpoint.save(tmp_path, 7, tree, keep=2)
    step, restored = checkpoint.restore_latest(
        tmp_path, {"state": make_state(0), "third": np.asarray(0.0), "count": np.asarray(0)}
    )
    assert step == 7
    assert_same(restored, tree)
    assert isinstance(restored["third"], np.ndarray) and isinstance(restored["state"].step, jax.Array)


def test_restores_onto_abstract_leaves(tmp_path):
    state = make_state(1)
    checkpoint.save(tmp_path, 1, state, keep=1)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    assert_same(checkpoint.restore_latest(tmp_path, like)[1], state)


def test_keeps_the_newest(tmp_path):
    for step in (1, 2, 3, 10):
        checkpoint.save(tmp_path, step, make_state(step), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "3"]
    assert checkpoint.restore_latest(tmp_path, make_state())[0] == 10
    assert checkpoint.latest_step(tmp_path) == 10


def test_nothing_there(tmp_path):
    assert checkpoint.restore_latest(tmp_path / "none", make_state()) is None
    assert checkpoint.latest_step(tmp_path / "none") is None


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "no manifest"])
def test_damage_falls_back_with_one_line(tmp_path, capfd, damage):
    for step in (4, 8):
        checkpoint.save(tmp_path, step, make_state(step), keep=3)
    newest = tmp_path / "8"
    biggest = max((p for p in (newest / "tree").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    if damage == "flip":
        flip(biggest)
    elif damage == "truncate":
        biggest.write_bytes(biggest.read_bytes()[:-1])
    elif damage == "remove":
        biggest.unlink()
    elif damage == "manifest":
        (newest / "manifest.json").write_text("{")
    else:
        (newest / "manifest.json").unlink()
    capfd.readouterr()
    step, restored = checkpoint.restore_latest(tmp_path, make_state())
    assert step == 4
    assert_same(restored, make_state(4))
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(lines) == 1 and "damaged" in lines[0] and str(newest) in lines[0]


def test_all_damaged_is_none_and_a_later_run_overtakes_it(tmp_path):
    checkpoint.save(tmp_path, 8, make_state(8), keep=2)
    (tmp_path / "8" / "manifest.json").unlink()
    assert checkpoint.restore_latest(tmp_path, make_state()) is None
    checkpoint.save(tmp_path, 5, make_state(5), keep=2)
    assert [p.name for p in tmp_path.iterdir()] == ["5"]
    assert checkpoint.restore_latest(tmp_path, make_state())[0] == 5


def test_a_killed_save_leaves_the_old_one(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, make_state(1), keep=2)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, 2, make_state(2), keep=2)
    assert checkpoint.restore_latest(tmp_path, make_state())[0] == 1
    checkpoint.save(tmp_path, 2, make_state(2), keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["2"]


@pytest.mark.parametrize(
    ("like", "names"),
    [
        (make_state(width=6), ["leaves.adapter.a", "[3, 5]", "[3, 6]"]),
        (make_state()._replace(leaves={"adapter": {"a": jnp.zeros((3, 5))}}), ["leaves.adapter.b", "absent"]),
        (make_state()._replace(step=jnp.zeros((), jnp.float32)), ["step", "int32", "float32"]),
    ],
    ids=["shape", "extra", "dtype"],
)
def test_another_structure_is_the_users_mistake(tmp_path, like, names):
    checkpoint.save(tmp_path, 1, make_state(), keep=1)
    with pytest.raises(UserError) as caught:
        checkpoint.restore_latest(tmp_path, like)
    assert all(name in str(caught.value) for name in names) and "\n" not in str(caught.value)


def test_save_tree_replaces_what_was_there(tmp_path):
    checkpoint.save_tree(tmp_path / "leaves", {"a": jnp.ones(3)})
    checkpoint.save_tree(tmp_path / "leaves", {"a": jnp.full(3, 2.0)})
    assert_same(checkpoint.load_tree(tmp_path / "leaves", {"a": jnp.zeros(3)}), {"a": jnp.full(3, 2.0)})
    with pytest.raises(UserError, match="no whole checkpoint"):
        checkpoint.load_tree(tmp_path / "other", {"a": jnp.zeros(3)})


def test_single_leaf_tree(tmp_path):
    checkpoint.save(tmp_path, 0, jnp.arange(4), keep=1)
    assert_same(checkpoint.restore_latest(tmp_path, jnp.zeros(4, jnp.int32))[1], jnp.arange(4))


RESHARD = """
import sys, jax, numpy as np, optax
from ml_collections import ConfigDict
from irl_jax import checkpoint, roles, sharding, steps
from irl_jax.models.transformer import ModelConfig, init_trunk
model = ModelConfig(vocab_size=32, num_layers=2, width=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=64, max_positions=16)
trunk = init_trunk(jax.random.key(0), model)
for rank in (0, 4):  # a whole trunk, and adapters onto a trunk given anew
    leaves = roles.init_leaves(jax.random.key(1), "reward", model, rank, trunk)
    state = steps.init_state(jax.tree.map(lambda x: x + 0.5, leaves), optax.adam(1e-3))
    want, folder = jax.device_get(state), f"{sys.argv[1]}/{rank}"
    for step, (fsdp, tensor) in enumerate([(4, 2), (8, 1), (2, 2), (2, 1), (1, 2), (1, 1), (4, 2)]):
        mesh = sharding.make_mesh(ConfigDict({"data": 1, "fsdp": fsdp, "tensor": tensor}), devices=jax.devices()[: fsdp * tensor])
        if step:
            like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, sharding.tree_shardings(state, mesh))
            found, state = checkpoint.restore_latest(folder, like)
            assert found == step and jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, like)
            assert all(jax.tree.leaves(jax.tree.map(np.array_equal, jax.device_get(state), want)))
        state = sharding.place(state, mesh)
        assert max(x.size // np.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state)) == (
            fsdp * tensor if rank == 0 else max(fsdp, tensor))
        checkpoint.save(folder, step + 1, state, keep=1)
"""


def test_restores_onto_another_mesh(tmp_path):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    root = os.path.dirname(os.path.dirname(__file__))
    command = [sys.executable, "-c", RESHARD, str(tmp_path)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


FULL = """
import resource, sys
import jax.numpy as jnp
from irl_jax import checkpoint
from irl_jax.errors import UserError
checkpoint.save(sys.argv[1], 1, {"w": jnp.arange(8.0)}, keep=3)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))  # stands for a full disk
saver = checkpoint.Saver(sys.argv[1], keep=3)
try:
    saver.save(2, {"w": jnp.arange(1e6)})
    saver.close()
except UserError as error:
    print(error)
found, tree = checkpoint.restore_latest(sys.argv[1], {"w": jnp.zeros(8)})
assert found == 1 and tree["w"][7] == 7
"""


def test_a_full_disk_is_one_line_and_earlier_checkpoints_are_whole(tmp_path):
    root = os.path.dirname(os.path.dirname(__file__))
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the checkpoint of step 2 could not be written (" in done.stdout and len(done.stdout.strip().splitlines()) == 1, done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_saving_goes_on_while_the_arrays_are_donated(tmp_path):
    """What is written is what the arrays held when `save` was called, whatever becomes of their buffers."""
    update = jax.jit(lambda x: x * 1.5 + 1, donate_argnums=0)
    saver, x = checkpoint.Saver(tmp_path, keep=4), jnp.ones((512, 512))
    expected = {}
    for step in range(4):
        expected[step] = np.array(x, copy=True)
        saver.save(step, {"x": x})
        for _ in range(3):
            x = update(x)
    saver.close()
    for step in reversed(range(4)):
        found, tree = checkpoint.restore_latest(tmp_path, {"x": jnp.zeros((512, 512))})
        assert found == step
        np.testing.assert_array_equal(tree["x"], expected[step])
        shutil.rmtree(tmp_path / str(step))


def test_a_full_disk_is_one_line(tmp_path):
    """Whatever orbax, tensorstore and asyncio have to say of it, in how many threads."""
    script = f"""if True:
        import resource, sys
        import numpy as np
        from irl_jax import checkpoint
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        tree = {{f"leaf{{i}}": np.random.default_rng(i).normal(size=3000) for i in range(40)}}
        try:
            checkpoint.save({str(tmp_path / "c")!r}, 1, tree, keep=1)
        except checkpoint.UserError as error:
            sys.exit(str(error))"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr[-2000:]
    assert "the checkpoint of step 1 could not be written (File too large)" in done.stderr
