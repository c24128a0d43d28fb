"""Eight forced host devices (fsdp=4, tensor=2) give one device's losses and gradient norms: 20 steps of every kind.

In a process of its own, for the number of devices is fixed when jax starts. The learning rate is the config's default, 1e-3.
Advantages have mean 1, so that the policy's surrogate is no small difference of large sums.
"""

import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

KINDS = ("sft", "bce", "bradley_terry", "policy", "policy_k2", "ppo", "ensemble")
CASES = [(kind, rank) for kind in KINDS for rank in (0, 4) if rank or kind not in ("policy_k2", "ppo", "ensemble")]  # 0: whole trunks
STEPS, B, T = 20, 8, 12
TOLERANCE = 1e-5


def batch_of(kind, number):
    """Rows of uneven lengths; one in eight only pads."""
    from irl_jax.types import PolicyBatch, RewardBatch, TokenBatch

    rng = np.random.default_rng(number)
    index = np.arange(T)[None]
    prompt, length = rng.integers(1, 4, (B, 1)), rng.integers(6, T + 1, (B, 1))
    inside = index < length
    rows = TokenBatch(
        np.where(inside, rng.integers(1, 33, (B, T)), 0).astype(np.int32),
        np.where(inside, index, 0).astype(np.int32),
        inside.astype(np.int32),
        (inside & (index >= prompt)).astype(np.float32),
    )
    weight = np.array([1, 1, 1, 0] * 2, np.float32)
    if kind == "sft":
        return rows
    if kind in ("bce", "ensemble"):  # classes of one weight would make the bias's gradient nil, and Adam scales even its rounding up
        weight[B // 2 :] /= 2
    if kind in ("bce", "bradley_terry", "ensemble"):
        return RewardBatch(rows, (length[:, 0] - 1).astype(np.int32), np.repeat([1, 0], B // 2).astype(np.float32), weight)
    reference = (rng.normal(size=(B, T)) * 0.1 - 3.5).astype(np.float32) * rows.mask
    advantage = rng.normal(1.0, size=(B, 1)).astype(np.float32) * rows.mask
    returns = rng.normal(size=(B, T)).astype(np.float32) * rows.mask
    return PolicyBatch(rows, advantage, reference, reference, returns, weight, weight)


@functools.cache
def start():
    """The model and its trunk, and leaves of (role, rank) as numpy."""
    import jax

    from irl_jax import roles
    from irl_jax.models.transformer import ModelConfig, init_trunk

    # An odd vocabulary stays whole; two key/value heads are split over tensor=2.
    model = ModelConfig(vocab_size=33, num_layers=2, width=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=64,
                        max_positions=16, adapter_scale=2.0)  # fmt: skip
    make = {(role, rank): functools.partial(roles.init_leaves, role=role, model=model, rank=rank)
            for role in ("sft", "reward", "policy") for rank in (0, 4)}  # fmt: skip
    make["value", 4] = functools.partial(make["policy", 4], value=True)
    make["ensemble", 4] = functools.partial(make["reward", 4], reward=roles.RewardSpec(ensemble=2))

    @jax.jit
    def draw(key):
        trunk = init_trunk(key, model)
        return trunk, {name: one(key, trunk=trunk) for name, one in make.items()}

    trunk, leaves = jax.device_get(draw(jax.random.key(0)))
    return model, trunk, leaves


def make_step(kind, model, optimizer):
    from irl_jax import policy_steps, reward_steps, steps

    if kind == "sft":
        return "sft", steps.make_sft_step(model, optimizer, accumulate=2)
    if kind in ("bce", "bradley_terry", "ensemble"):
        return ("ensemble" if kind == "ensemble" else "reward"), reward_steps.make_reward_step(
            model, optimizer, loss="bradley_terry" if kind == "bradley_terry" else "bce")
    settings = policy_steps.PolicySettings(kl="k2_loss" if kind == "policy_k2" else "k1_reward")
    if kind == "ppo":
        settings = policy_steps.PolicySettings(surrogate="ppo_clip", epochs=2, minibatches=1, advantage="gae", value_coefficient=0.5,
                                               kl="k3_weighted_loss", entropy=0.1)
    return ("value" if kind == "ppo" else "policy"), policy_steps.make_policy_step(model, optimizer, settings)


def train(kind, rank, mesh, count=STEPS):
    """[count, 2] losses and gradient norms, and how the leaves were split."""
    import jax
    from ml_collections import ConfigDict

    from irl_jax import policy_steps, sharding, steps

    model, trunk, leaves = start()
    config = ConfigDict({"learning_rate": 1e-3, "warmup_fraction": 0.1, "schedule": "cosine", "final_fraction": 0.1,
                         "weight_decay": 0.1, "clip_norm": 1.0, "b2": 0.99})  # fmt: skip
    optimizer = steps.make_optimizer(config, STEPS)
    role, step = make_step(kind, model, optimizer)
    control = policy_steps.init_control(0.1) if role in ("policy", "value") else ()
    state = sharding.place(steps.init_state(leaves[role, rank], optimizer, control), mesh)
    trunk = sharding.place(trunk, mesh) if rank else None
    step, losses, before = sharding.compile_step(step, mesh, donate=(0,)), [], jax.tree.map(lambda x: x.sharding, state)
    for number in range(count):
        state, metrics = step(state, trunk, sharding.put_batch(batch_of(kind, number), mesh), jax.random.key(number))
        losses.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    split = max(leaf.size // np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(state.leaves))
    kept = jax.tree.map(lambda x: x.sharding, state) == before
    return {"losses": losses, "split": int(split), "kept": kept, "traces": step.traces}


def main(argv):
    """Prints a JSON object: "kind/rank" -> [one device, eight devices], or one of them: "alone", or as one of many processes.

    --steps and --kinds (with commas) take fewer of both.
    """
    flags = dict(argument[2:].partition("=")[::2] for argument in argv if argument.startswith("--"))
    count, kinds = int(flags.pop("steps", STEPS)), flags.pop("kinds", ",".join(KINDS)).split(",")
    if "multihost" in flags:
        from irl_jax import distributed

        distributed.initialize(flags["coordinator"], int(flags["processes"]), int(flags["process"]), patience=600)
    import jax
    from ml_collections import ConfigDict

    from irl_jax import sharding

    meshes = []
    if not flags:
        meshes.append(sharding.make_mesh(ConfigDict({"data": 1, "fsdp": 1, "tensor": 1}), devices=jax.devices()[:1]))
    if "alone" not in argv:
        meshes.append(sharding.make_mesh(ConfigDict({"data": -1, "fsdp": 4, "tensor": 2})))
    out = {f"{kind}/{rank}": [train(kind, rank, mesh, count) for mesh in meshes] for kind, rank in CASES if kind in kinds}
    print(json.dumps(out))


@pytest.fixture(scope="module")
def results():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiles without LLVM's, which would take most of the time
    environment["PYTHONPATH"] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("kind", "rank"), CASES)
def test_eight_devices_equal_one(results, kind, rank):
    one, eight = results[f"{kind}/{rank}"]
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=TOLERANCE)
    assert np.ptp(np.array(one["losses"])[:, 0]) > 1e-4  # something was trained
    assert (one["split"], eight["split"]) == (1, 8 if rank == 0 else 4)  # parameters really are split
    assert eight["kept"] and one["kept"]  # a step's output has its input's shardings
    assert eight["traces"] == one["traces"] == 1


if __name__ == "__main__":
    main(sys.argv[1:])
