"""Samples joined to their prompts, and the rollout's rewards and advantages, against what is worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irl_jax import rollouts, sampler, steps
from irl_jax.models import transformer
from irl_jax.models.transformer import ModelConfig
from irl_jax.types import PromptBatch, SampleBatch

MODEL = ModelConfig(vocab_size=11, num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_width=32, max_positions=16)
PROMPTS = PromptBatch(jnp.array([[3, 4, 0], [5, 6, 7]]), jnp.array([2, 3]), jnp.array([0, 1]))


def test_join_rows_by_hand():
    tokens = jnp.array([[[8, 1, 0], [9, 9, 9]], [[1, 0, 0], [8, 9, 1]]])
    mask = jnp.array([[[1, 1, 0], [1, 1, 1]], [[1, 0, 0], [1, 1, 1]]], jnp.float32)
    logprobs = -jnp.arange(1.0, 13.0).reshape(2, 2, 3) * mask
    samples = SampleBatch(tokens, mask, mask.sum(-1) < 3, logprobs, None)
    rows, last, behaviour = rollouts.join_rows(PROMPTS, samples, pad_id=0)
    np.testing.assert_array_equal(rows.tokens, [[3, 4, 8, 1, 0, 0], [3, 4, 9, 9, 9, 0], [5, 6, 7, 1, 0, 0], [5, 6, 7, 8, 9, 1]])
    np.testing.assert_array_equal(rows.mask, [[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 1]])
    np.testing.assert_array_equal(rows.segments, [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0], [1] * 6])
    np.testing.assert_array_equal(rows.positions, [[0, 1, 2, 3, 0, 0], [0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 0, 0], [0, 1, 2, 3, 4, 5]])
    np.testing.assert_array_equal(last, [3, 4, 3, 5])
    np.testing.assert_array_equal(behaviour, [[0, 0, -1, -2, 0, 0], [0, 0, -4, -5, -6, 0], [0, 0, 0, -7, 0, 0],
                                              [0, 0, 0, -10, -11, -12]])


@pytest.mark.parametrize("kl", ["reward", "loss"])
def test_rollout_advantages(kl):
    """RLOO of (log-ratio reward - beta k1), recomputed in numpy from the rows themselves."""
    trunk = transformer.init_trunk(jax.random.key(0), MODEL)
    policy, sft = ({"trunk": transformer.init_trunk(jax.random.key(i), MODEL)} for i in (1, 2))
    draw = sampler.make_sampler(MODEL, samples=3, max_tokens=5, eos_ids=(1,), pad_id=0)
    judge = rollouts.make_judge(MODEL, "log_ratio")
    rollout = jax.jit(rollouts.make_rollout(MODEL, draw, judge, pad_id=0, beta=0.3, kl=kl))
    batch, metrics = rollout(policy, sft, sft, trunk, PROMPTS, jax.random.key(7))

    def scores(leaves):
        return np.asarray(steps.score_logprobs(MODEL, trunk, leaves, batch.rows), np.float64).sum(-1)

    k1 = scores(policy) - scores(sft)
    returns = scores(sft) - scores(None) - (0.3 * k1 if kl == "reward" else 0.0)
    by_prompt = returns.reshape(2, 3)
    baseline = (by_prompt.sum(1, keepdims=True) - by_prompt) / 2
    np.testing.assert_allclose(batch.advantage, (by_prompt - baseline).reshape(-1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(metrics["kl"], k1.mean(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.behaviour_logprobs.sum(-1), scores(policy), rtol=1e-5, atol=1e-5)


def test_learnt_judge_reads_the_last_response_token():
    trunk = transformer.init_trunk(jax.random.key(0), MODEL)
    head = {"kernel": jax.random.normal(jax.random.key(3), (16, 1)), "bias": jnp.ones(1)}
    tokens = jnp.array([[[8, 1, 0]], [[9, 8, 1]]])
    mask = jnp.array([[[1, 1, 0]], [[1, 1, 1]]], jnp.float32)
    samples = SampleBatch(tokens, mask, jnp.ones((2, 1), bool), jnp.zeros((2, 1, 3)), None)
    rows, last, _ = rollouts.join_rows(PROMPTS, samples, pad_id=0)
    got = rollouts.make_judge(MODEL, "init_sft")(trunk, {"trunk": trunk, "head": head}, rows, last)
    hidden = transformer.hidden_states(MODEL, {"params": trunk}, rows.tokens, rows.positions, rows.segments)
    want = [hidden[0, 3] @ head["kernel"][:, 0] + 1, hidden[1, 5] @ head["kernel"][:, 0] + 1]
    np.testing.assert_allclose(got, want, rtol=1e-5)
