"""The DPO step: its loss by hand, pairs that stay together in micro-batches, where it starts, and the trunk it never touches."""

import functools

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from irl_jax import roles, sharding, steps
from irl_jax.models.transformer import ModelConfig, init_trunk
from irl_jax.objectives import preference
from irl_jax.preference_steps import PreferenceBatch, make_preference_step
from irl_jax.types import TokenBatch

MODEL = ModelConfig(vocab_size=13, num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=32,
                    max_positions=16, positions="rotary", norm="rms", gated_mlp=True, activation="silu", qkv_bias=False, output_bias=False, mlp_bias=False,
                    adapter_scale=2.0)  # fmt: skip
TRUNK = jax.jit(lambda key: init_trunk(key, MODEL))(jax.random.key(1))
B, T, BETA = 8, 10, 0.7
logprobs_of = jax.jit(lambda trunk, leaves, rows: steps.score_logprobs(MODEL, trunk, leaves, rows).sum(-1))


@functools.cache
def start(rank=4):
    """Leaves off the zeros of a fresh adapter; numpy, so that steps share them."""
    leaves = jax.device_get(roles.init_leaves(jax.random.key(2), "policy", MODEL, rank, TRUNK))
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda x: (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32), leaves)


def batch_of(seed=0, reference=None):
    """Four pairs of uneven lengths and weights; the reference's log-probs are random unless given as leaves."""
    rng = np.random.default_rng(seed)
    index = np.arange(T)[None]
    prompt, length = np.tile(rng.integers(1, 4, (B // 2, 1)), (2, 1)), rng.integers(5, T + 1, (B, 1))
    inside = index < length
    rows = TokenBatch(
        np.where(inside, rng.integers(1, 13, (B, T)), 0).astype(np.int32),
        np.where(inside, index, 0).astype(np.int32),
        inside.astype(np.int32),
        (inside & (index >= prompt)).astype(np.float32),
    )
    logprobs = rng.normal(size=B) - 15 if reference is None else logprobs_of(TRUNK, reference, rows)
    return PreferenceBatch(rows, np.asarray(logprobs, np.float32), np.array([1, 1, 0.5, 1] * 2, np.float32))


@functools.cache
def compiled(rank=4, accumulate=1, label_smoothing=0.0):
    """SGD: its update is the gradient itself, whose size Adam's would hide."""
    optimizer = optax.sgd(0.1)
    step = make_preference_step(MODEL, optimizer, accumulate, beta=BETA, label_smoothing=label_smoothing)
    return jax.jit(step), steps.init_state(start(rank), optimizer)


def run(batch, **how):
    step, state = compiled(**how)
    return step(state, TRUNK if how.get("rank", 4) else None, batch, jax.random.key(0))


def close(a, b, rtol=1e-6, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_loss_and_metrics_by_hand(rank, label_smoothing):
    batch = batch_of()
    chosen, rejected = np.split(np.asarray(logprobs_of(TRUNK, start(rank), batch.rows), np.float64), 2)
    reference = np.split(batch.reference_logprobs.astype(np.float64), 2)
    w = batch.weight[: B // 2].astype(np.float64)
    margin = BETA * ((chosen - reference[0]) - (rejected - reference[1]))
    losses = (1 - label_smoothing) * np.logaddexp(0, -margin) + label_smoothing * np.logaddexp(0, margin)
    _, metrics = run(batch, rank=rank, label_smoothing=label_smoothing)
    want = {
        "loss": np.average(losses, weights=w),
        "accuracy": np.average(margin > 0, weights=w),
        "margin": np.average(margin, weights=w),
        "chosen_logprob": np.average(chosen, weights=w),
        "rejected_logprob": np.average(rejected, weights=w),
        "tokens": batch.rows.mask.sum(),
    }
    close({name: metrics[name] for name in want}, want, rtol=1e-5)
    assert set(metrics) == {*want, "grad_norm"} and 0 < want["accuracy"] < 1
    total, weight = preference.dpo(chosen, rejected, *reference, w, BETA, label_smoothing)
    close(metrics["loss"], total / weight, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_keep_pairs_together(accumulate):
    batch = batch_of()
    one, metrics_one = run(batch)
    many, metrics_many = run(batch, accumulate=accumulate)
    close(many.leaves, one.leaves, rtol=0)
    close(metrics_many, metrics_one, rtol=2e-6)


def test_at_the_reference_the_loss_is_log_2():
    batch = batch_of(reference=start())
    state, metrics = run(batch)
    np.testing.assert_allclose([metrics["loss"], metrics["margin"]], [np.log(2), 0], atol=1e-5)
    chosen, rejected = np.split(np.asarray(logprobs_of(TRUNK, state.leaves, batch.rows)), 2)
    moved = (chosen - rejected) - np.subtract(*np.split(batch.reference_logprobs, 2))
    assert np.average(moved, weights=batch.weight[: B // 2]) > 0.01  # the first step raises the mean margin


def test_pairs_that_only_pad_count_nothing():
    batch = batch_of()
    halves = [jax.tree.map(lambda leaf, part=part: np.pad(leaf[part], [(0, 2)] + [(0, 0)] * (leaf.ndim - 1)), batch)
              for part in (slice(0, B // 2), slice(B // 2, B))]
    want, metrics_want = run(batch)
    got, metrics_got = run(jax.tree.map(lambda *parts: np.concatenate(parts), *halves))
    close(got.leaves, want.leaves, rtol=0)
    close(metrics_got, metrics_want, rtol=2e-6)


@pytest.mark.parametrize("rank", [0, 4])
def test_the_trunk_is_bitwise_unchanged_and_the_state_donated(rank):
    mesh = sharding.make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}), devices=jax.devices()[:1])
    trunk = sharding.place(TRUNK, mesh)
    before = jax.tree.map(lambda x: np.asarray(x).tobytes(), trunk)
    optimizer = optax.adamw(1e-2)
    leaves = roles.init_leaves(jax.random.key(2), "policy", MODEL, rank, trunk)
    step = sharding.compile_step(make_preference_step(MODEL, optimizer, beta=BETA), mesh, donate=(0,))
    state = sharding.place(steps.init_state(leaves, optimizer), mesh)
    losses = []
    for number in range(8):
        old, batch = state, sharding.put_batch(batch_of(0, reference=None), mesh)
        state, metrics = step(state, trunk, batch, jax.random.key(number))
        losses.append(float(metrics["loss"]))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.leaves))
    assert int(state.step) == 8 and step.traces == 1 and losses[-1] < losses[0]
    assert jax.tree.map(lambda x: np.asarray(x).tobytes(), trunk) == before
