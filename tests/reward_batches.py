"""A tiny reward model with batches of pairs, for tests."""

import functools

import jax
import numpy as np
import optax

from irl_jax import reward_steps, roles, steps
from irl_jax.models.transformer import ModelConfig, init_trunk
from irl_jax.reward_steps import RewardSettings
from irl_jax.roles import RewardSpec
from irl_jax.types import RewardBatch, TokenBatch

MODEL = ModelConfig(vocab_size=13, num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=24,
                    max_positions=16, positions="rotary", norm="rms", gated_mlp=True, activation="silu", qkv_bias=False, output_bias=False, mlp_bias=False,
                    adapter_scale=2.0)  # fmt: skip
TRUNK = jax.jit(lambda key: init_trunk(key, MODEL))(jax.random.key(1))
B, T, EOS = 8, 10, 12
KEY = jax.random.key(7)
SPEC, PLAIN, TOKEN = RewardSpec(), RewardSettings(), RewardSettings("token", eos_ids=(EOS,))


def batch_of(prompts, responses, weight=None):
    """A batch of rows: the first half positives, the second the negatives of the same prompts."""
    r = TokenBatch(*(np.zeros((len(prompts), T), dtype) for dtype in (np.int32, np.int32, np.int32, np.float32)))
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        n = len(prompt) + len(response)
        r.tokens[row, :n], r.positions[row, :n], r.segments[row, :n] = [*prompt, *response], np.arange(n), 1
        r.mask[row, len(prompt) : n] = 1
    weight = np.ones(len(prompts), np.float32) if weight is None else np.asarray(weight, np.float32)
    label = np.repeat([1.0, 0.0], len(prompts) // 2).astype(np.float32)
    return RewardBatch(r, (r.segments.sum(1) - 1).astype(np.int32), label, weight)


def random_batch(seed=0, weight=(1, 1, 0.5, 1) * 2):
    """Uneven lengths; every other response ends with EOS, and one positive is the EOS alone: an empty common prefix."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(1, 12, rng.integers(1, 4)) for _ in range(B // 2)] * 2
    responses = [[*rng.integers(1, 12, rng.integers(1, 6)), *([EOS] if row % 2 else [])] for row in range(B)]
    responses[1] = [EOS]
    return batch_of(prompts, responses, weight)


@functools.cache
def start(spec=SPEC, rank=4):
    """Leaves off the zeros of a fresh adapter and head; numpy, so that steps share them."""
    leaves = jax.device_get(roles.init_leaves(jax.random.key(2), "reward", MODEL, rank, TRUNK, reward=spec))
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda x: (x + 0.2 * rng.normal(size=x.shape)).astype(np.float32), leaves)


@functools.cache
def compiled(loss="bce", settings=PLAIN, accumulate=1, rate=0.1):
    """With plain gradient descent the update is the gradient itself, whose size Adam's would hide."""
    return jax.jit(reward_steps.make_reward_step(MODEL, optax.sgd(rate), accumulate, loss, settings))


def run(batch, loss="bce", settings=PLAIN, leaves=None, accumulate=1):
    leaves = start() if leaves is None else leaves
    return compiled(loss, settings, accumulate)(steps.init_state(leaves, optax.sgd(0.1)), TRUNK, batch, KEY)


def gradient(state, leaves):
    return jax.tree.map(lambda new, old: (np.asarray(old, np.float64) - new) / 0.1, state.leaves, leaves)


@functools.cache
def scorer_of(granularity):
    return jax.jit(lambda leaves, batch: reward_steps.score_member_rewards(MODEL, TRUNK, leaves, batch, granularity))


def members_of(leaves, batch, granularity="response"):
    return np.asarray(scorer_of(granularity)(leaves, batch), np.float64)


_token_logits = jax.jit(lambda leaves, rows: reward_steps.token_logits(MODEL, TRUNK, leaves, rows))


def token_logits_of(leaves, rows):
    return np.asarray(_token_logits(leaves, rows), np.float64)


def close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def same_update(new, other, old):
    """Equal to float32's precision of the largest update."""
    largest = max(np.abs(np.asarray(x) - y).max() for x, y in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True))
    close(new, other, rtol=0, atol=1e-5 * max(1.0, largest))


def prefix_by_loop(batch):
    """The tokens that count in token rewards, written down as a loop."""
    out, half = np.zeros((B, T)), B // 2
    length = lambda row: int(batch.rows.mask[row].sum()) - (batch.rows.tokens[row, batch.last[row]] == EOS)
    for pair in range(half):
        for row in (pair, pair + half):
            first = int(np.argmax(batch.rows.mask[row]))
            for index in range(min(length(pair), length(pair + half))):
                out[row, first + index] = 1
    return out
