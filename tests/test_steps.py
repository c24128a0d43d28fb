"""Steps: what they compute by hand, accumulation, padding, packing, donation, and the trunk they never touch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from irl_jax import policy_steps, reward_steps, roles, sharding, steps
from irl_jax.errors import UserError
from irl_jax.models.transformer import ModelConfig, init_trunk
from irl_jax.types import PolicyBatch, RewardBatch, TokenBatch

MODEL = ModelConfig(vocab_size=13, num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=32,
                    max_positions=16, positions="rotary", norm="rms", gated_mlp=True, activation="silu", qkv_bias=False, output_bias=False, mlp_bias=False,
                    adapter_scale=2.0)  # fmt: skip
TRUNK = jax.jit(lambda key: init_trunk(key, MODEL))(jax.random.key(1))
KINDS = ("sft", "bce", "bradley_terry", "policy", "policy_k2", "ppo")
POLICY = {
    "policy": policy_steps.PolicySettings(),
    "policy_k2": policy_steps.PolicySettings(kl="k2_loss"),
    "ppo": policy_steps.PolicySettings(surrogate="ppo_clip", advantage="gae", value_coefficient=0.5, kl="k3_weighted_loss", entropy=0.1),
}
B, T = 8, 10


def stage(**changes):
    return ConfigDict({"learning_rate": 1e-2, "warmup_fraction": 0.0, "schedule": "constant", "final_fraction": 0.1,
                       "weight_decay": 0.0, "clip_norm": 1.0, "b2": 0.99} | changes)  # fmt: skip


def rows(seed=0, count=B):
    """Rows with prompts and responses of uneven lengths, so that uneven numbers of tokens count."""
    rng = np.random.default_rng(seed)
    index = np.arange(T)[None]
    prompt, length = rng.integers(1, 4, (count, 1)), rng.integers(5, T + 1, (count, 1))
    inside = index < length
    return TokenBatch(
        np.where(inside, rng.integers(1, 13, (count, T)), 0).astype(np.int32),
        np.where(inside, index, 0).astype(np.int32),
        inside.astype(np.int32),
        (inside & (index >= prompt)).astype(np.float32),
    )


def batch_of(kind, seed=0):
    r, rng = rows(seed), np.random.default_rng(seed + 100)
    weight = np.array([1, 1, 0.5, 1] * 2, np.float32)
    if kind == "sft":
        return r
    if kind in ("bce", "bradley_terry"):
        return RewardBatch(r, (r.segments.sum(1) - 1).astype(np.int32), np.repeat([1.0, 0.0], B // 2).astype(np.float32), weight)
    reference = (rng.normal(size=(B, T)) - 2).astype(np.float32) * r.mask
    advantage = rng.normal(size=(B, 1)).astype(np.float32) * r.mask
    returns = (rng.normal(size=(B, T)) if kind == "ppo" else np.zeros((B, T))).astype(np.float32) * r.mask
    return PolicyBatch(r, advantage, reference, reference, returns, rng.normal(size=B).astype(np.float32), weight)


def make(kind, rank=4, accumulate=1, sgd=False, **settings):
    """A step and its state; with sgd the update is the gradient itself, whose size Adam's would hide."""
    optimizer = optax.sgd(0.1) if sgd else steps.make_optimizer(stage(**settings), 10)
    if kind == "sft":
        role, step = "sft", steps.make_sft_step(MODEL, optimizer, accumulate)
    elif kind in ("bce", "bradley_terry"):
        role, step = "reward", reward_steps.make_reward_step(MODEL, optimizer, accumulate, loss=kind)
    else:
        role, step = "policy", policy_steps.make_policy_step(MODEL, optimizer, POLICY[kind], accumulate)
    control = policy_steps.init_control(0.3) if role == "policy" else ()
    return step, steps.init_state(start(role, rank, kind == "ppo"), optimizer, control)


@functools.cache
def start(role, rank, value=False):
    """Leaves off the zeros of a fresh adapter and head, where many gradients vanish; numpy, so that steps share them."""
    leaves = jax.device_get(roles.init_leaves(jax.random.key(2), role, MODEL, rank, TRUNK, value=value))
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda x: (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32), leaves)


@functools.cache
def compiled(kind, **kwargs):
    step, state = make(kind, **kwargs)
    return jax.jit(step), state


def run(kind, batch, **kwargs):
    step, state = compiled(kind, **kwargs)
    return step(state, TRUNK if kwargs.get("rank", 4) else None, batch, jax.random.key(0))


logprobs_of = jax.jit(functools.partial(steps.score_logprobs, MODEL))


def close(a, b, rtol=1e-6, atol=1e-7):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


# ---------------------------------------------------------------------------------------------------------- the sums
@pytest.mark.parametrize("kind", KINDS)
def test_four_micro_batches_equal_one(kind):
    batch = batch_of(kind)
    one, metrics_one = run(kind, batch, sgd=True)
    four, metrics_four = run(kind, batch, accumulate=4, sgd=True)
    close(four.leaves, one.leaves, rtol=0, atol=1e-6)
    close(metrics_four, metrics_one, rtol=2e-6, atol=1e-6)
    assert np.ptp(np.asarray((batch if kind == "sft" else batch.rows).mask).sum(1)) > 1  # uneven, or a mean of means would pass


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_only_pad_count_nothing(kind):
    batch = batch_of(kind)
    padded = sharding.pad_rows(batch, 6, paired=kind == "bradley_terry")
    assert jax.tree.leaves(padded)[0].shape[0] == 12
    want, metrics_want = run(kind, batch, sgd=True)
    got, metrics_got = run(kind, padded, sgd=True)
    close(got.leaves, want.leaves, rtol=0, atol=1e-6)
    close(metrics_got, metrics_want, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_weight_changes_nothing(kind):
    batch = batch_of(kind)
    empty = jax.tree.map(np.zeros_like, batch)
    state, metrics = run(kind, empty, sgd=True)
    close(state.leaves, make(kind)[1].leaves, rtol=0, atol=0)
    assert all(float(value) == 0 for value in metrics.values()), metrics


def test_packed_rows_give_the_gradient_of_unpacked_ones():
    r = rows()
    packed = [np.zeros((4, 2 * T), leaf.dtype) for leaf in r]
    for row in range(4):
        start = 0
        for number, source in enumerate((2 * row, 2 * row + 1)):
            length = int(r.segments[source].sum())
            for target, leaf in zip(packed, r, strict=True):
                target[row, start : start + length] = leaf[source, :length]
            packed[2][row, start : start + length] = number + 1
            start += length
    want, metrics_want = run("sft", r, sgd=True)
    got, metrics_got = run("sft", TokenBatch(*packed), sgd=True)
    close(got.leaves, want.leaves, rtol=0, atol=1e-6)
    close(metrics_got, metrics_want, rtol=2e-6)


# ------------------------------------------------------------------------------------------------------------- values
def test_sft_loss_is_the_mean_over_response_tokens_before_the_update():
    batch = batch_of("sft")
    step, state = make("sft")
    logprobs = np.asarray(logprobs_of(TRUNK, state.leaves, batch), np.float64)
    assert np.all(logprobs[batch.mask == 0] == 0) and np.all(logprobs[batch.mask == 1] < 0)
    _, metrics = run("sft", batch)
    np.testing.assert_allclose(metrics["loss"], -logprobs.sum() / batch.mask.sum(), rtol=1e-6)
    assert float(metrics["tokens"]) == batch.mask.sum()


@pytest.mark.parametrize("kind", ["policy", "policy_k2"])
def test_policy_loss_and_metrics(kind):
    batch = batch_of(kind)
    logprobs = np.asarray(logprobs_of(TRUNK, make(kind)[1].leaves, batch.rows), np.float64)
    w, mask = batch.weight.astype(np.float64), batch.rows.mask
    ratio = (logprobs - batch.reference_logprobs).sum(1)
    loss = -np.average((batch.advantage * logprobs).sum(1), weights=w)
    if kind == "policy_k2":
        loss += 0.3 * np.average(ratio**2 / 2, weights=w)
    _, metrics = run(kind, batch)
    want = {
        "loss": loss,
        "entropy": -(w[:, None] * logprobs).sum() / (w[:, None] * mask).sum(),
        "behaviour_gap": (w[:, None] * np.abs(logprobs - batch.behaviour_logprobs)).sum() / (w[:, None] * mask).sum(),
        "tokens": mask.sum(),
    }
    close({name: metrics[name] for name in want}, want, rtol=1e-5)
    assert "kl" not in metrics  # that is the samples', which rollouts measures


def test_two_metrics_of_one_name_are_an_error():
    def loss(leaves, trunk, rows, rng):
        return jnp.sum(leaves["x"]), 1.0, 1.0, {"loss": (1.0, 1.0)}

    optimizer = optax.sgd(0.1)
    with pytest.raises(TypeError, match="multiple values for keyword argument 'loss'"):
        steps.make_step(loss, optimizer)(steps.init_state({"x": jnp.ones(2)}, optimizer), None, None, jax.random.key(0))


@pytest.mark.parametrize("kind", ["sft", "policy"])
def test_the_eos_token_has_a_gradient(kind):
    """Only the last response token (EOS) counts: the gradient is not 0."""
    batch = batch_of(kind)
    r = batch if kind == "sft" else batch.rows
    last = np.arange(T)[None] == r.segments.sum(1, keepdims=True) - 1
    r = r._replace(mask=r.mask * last)
    _, metrics = run(kind, r if kind == "sft" else batch._replace(rows=r))
    assert float(metrics["tokens"]) == B and float(metrics["grad_norm"]) > 1e-3


# ------------------------------------------------------------------------------------------------ state and trunk
@pytest.mark.parametrize(("kind", "rank"), [*((kind, 4) for kind in KINDS), ("sft", 0)])
def test_the_trunk_is_bitwise_unchanged_and_the_state_donated(kind, rank):
    mesh = sharding.make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}), devices=jax.devices()[:1])
    trunk = sharding.place(TRUNK, mesh)
    before = jax.tree.map(lambda x: np.asarray(x).tobytes(), trunk)
    step, state = make(kind, rank)
    if rank == 0:  # a role's own trunk starts from the shared one; donating it must not take that along
        state = state._replace(leaves=roles.init_leaves(jax.random.key(2), "sft", MODEL, 0, trunk))
    step, state = sharding.compile_step(step, mesh, donate=(0,)), sharding.place(state, mesh)
    for number in range(3):
        old, batch = state, sharding.put_batch(batch_of(kind, number), mesh)
        state, metrics = step(state, trunk if rank else None, batch, jax.random.key(number))
        assert float(metrics["grad_norm"]) > 0
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.leaves))
    assert int(state.step) == 3 and step.traces == 1
    assert jax.tree.map(lambda x: np.asarray(x).tobytes(), trunk) == before
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(trunk))


@pytest.mark.parametrize("rank", [0, 4])
def test_sft_learns_a_batch_by_heart(rank):
    step, state = make("sft", rank, learning_rate=2e-2)
    jitted, losses = jax.jit(step), []
    for number in range(60):
        state, metrics = jitted(state, TRUNK, batch_of("sft"), jax.random.key(number))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0], losses


# ---------------------------------------------------------------------------------------------------------- optimizer
@pytest.mark.parametrize(("schedule", "want"), [
    ("linear", [1 / 3, 2 / 3, 1, 0.85, 0.7, 0.55, 0.4]),
    ("cosine", [1 / 3, 2 / 3, 1, 0.4 + 0.3 * (1 + np.sqrt(0.5)), 0.7, 0.4 + 0.3 * (1 - np.sqrt(0.5)), 0.4]),
    ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1]),
])  # fmt: skip
def test_learning_rate_warms_up_and_decays_to_its_fraction(schedule, want):
    rate = steps.learning_rate(stage(learning_rate=2.0, warmup_fraction=0.3, schedule=schedule, final_fraction=0.4), 7)
    np.testing.assert_allclose([float(rate(s)) for s in range(7)], 2 * np.array(want), rtol=1e-6)


def test_no_warm_up_starts_at_the_peak_and_one_step_is_enough():
    for count in (1, 5):
        assert float(steps.learning_rate(stage(schedule="cosine"), count)(0)) == pytest.approx(1e-2)


def test_weight_decay_is_for_matrices_only():
    norm, dense = {"scale": (3, 4), "bias": (3, 4)}, {"kernel": (3, 4, 4), "bias": (3, 4)}  # blocks: the layer comes first
    shapes = {
        "trunk": {"embed": {"tokens": (5, 4), "positions": (6, 4)}, "final_norm": {"scale": (4,), "bias": (4,)},
                  "blocks": {"mlp_norm": norm, "mlp": {"up": dense}}},
        "adapter": {"blocks": {"mlp": {"up": {"a": (3, 4, 2), "b": (3, 2, 4)}}}},
        "head": {"kernel": (4, 1), "bias": (1,)},
        "members": {"head": {"kernel": (2, 4, 1), "bias": (2, 1)}, "adapter": {"blocks": {"mlp": {"up": {"a": (2, 3, 4, 2), "b": (2, 3, 2, 4)}}}}},
    }  # fmt: skip
    leaves = jax.tree.map(lambda shape: np.ones(shape, np.float32), shapes, is_leaf=lambda x: isinstance(x, tuple))
    optimizer = steps.make_optimizer(stage(weight_decay=0.5), 10)
    updates, _ = jax.jit(lambda x: optimizer.update(jax.tree.map(jnp.zeros_like, x), optimizer.init(x), x))(leaves)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        matrix = path[-1].key in ("kernel", "tokens", "positions", "a", "b")
        np.testing.assert_allclose(update, -0.5 * 1e-2 if matrix else 0, rtol=1e-6, err_msg=str(path))


@pytest.mark.parametrize(("clip_norm", "size"), [(0.0, 10.0), (1.0, 1.0), (20.0, 10.0)])
def test_clipping_by_the_global_norm(clip_norm, size):
    optimizer = steps.make_optimizer(stage(clip_norm=clip_norm), 10)
    leaves = {"a": jnp.zeros(4), "b": jnp.zeros(())}
    grads = {"a": jnp.full(4, 3.0), "b": jnp.array(8.0)}
    _, state = optimizer.update(grads, optimizer.init(leaves), leaves)
    mu = (state[1] if clip_norm else state)[0].mu  # Adam's first moment after one step: (1 - b1) times what it was given
    np.testing.assert_allclose(np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(mu))), 0.1 * size, rtol=1e-6)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="'cosine', 'linear', 'constant'"):
        steps.make_optimizer(stage(schedule="cosnie"), 10)
    with pytest.raises(UserError, match="'bce', 'bradley_terry'"):
        reward_steps.make_reward_step(MODEL, optax.sgd(0.1), loss="hinge")
    with pytest.raises(ValueError, match="8 rows do not split into 3"):
        run("sft", batch_of("sft"), accumulate=3)
