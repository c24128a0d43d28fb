"""Samples joined to their prompts, and the rollout's rewards and advantages, against what is worked out by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irl_jax import policy_steps, roles, rollouts, sampler, steps
from irl_jax.data.batching import PADDING_ID
from irl_jax.models import transformer
from irl_jax.models.transformer import ModelConfig
from irl_jax.policy_steps import PolicySettings
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


def drawn_and(prompts=PROMPTS, samples=3):
    """Samples of a policy that is neither sft nor init, and the leaves they came from."""
    trunk = transformer.init_trunk(jax.random.key(0), MODEL)
    policy, sft = ({"trunk": transformer.init_trunk(jax.random.key(i), MODEL)} for i in (1, 2))
    draw = sampler.make_sampler(MODEL, samples=samples, max_tokens=5, eos_ids=(1,), pad_id=0)
    drawn = jax.jit(rollouts.make_draw(MODEL, draw, pad_id=0))(policy, sft, trunk, prompts, jax.random.key(7))
    return trunk, policy, sft, drawn


def scores(trunk, leaves, drawn):
    return np.asarray(steps.score_logprobs(MODEL, trunk, leaves, drawn.rows), np.float64)


def advantages(settings, drawn, logits, control=None, leaves=None, trunk=None, eos_counts=True, samples=3):
    make = rollouts.make_advantages(MODEL, settings, samples, eos_counts)
    return make(leaves or {}, trunk, drawn, logits, control or policy_steps.init_control(0.3))


@pytest.mark.parametrize("kind", ["reinforce", "rloo", "grpo"])
@pytest.mark.parametrize("recipe", ["log_ratio", "log_ratio_dense"])
def test_rows_that_only_fill_the_batch_count_nowhere(kind, recipe):
    """A third and a fourth row without a prompt change no advantage, no statistic, no metric and no beta."""
    settings = PolicySettings(advantage=kind, normalise_rewards=True, target_kl=0.2)
    filled = PromptBatch(jnp.pad(PROMPTS.tokens, ((0, 2), (0, 0))), jnp.array([2, 3, 1, 1]), jnp.array([0, 1, PADDING_ID, PADDING_ID]))
    results = []
    for prompts in (PROMPTS, filled):
        trunk, _, sft, drawn = drawn_and(prompts)
        results.append(advantages(settings, drawn, rollouts.make_judge(MODEL, recipe)(trunk, sft, drawn)))
    (one, control_one, metrics_one), (two, control_two, metrics_two) = results
    assert two.weight.tolist() == [1] * 6 + [0] * 6 and not np.any(two.advantage[6:])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(two.advantage[:6], one.advantage)
    jax.tree.map(close, (control_two, metrics_two), (control_one, metrics_one))
    assert np.ptp(one.advantage) > 0.1 and float(control_one.beta) != pytest.approx(0.3)


@pytest.mark.parametrize("kl", ["k1_reward", "k2_loss"])
def test_response_advantages(kl):
    """RLOO of (log-ratio reward - beta k1), recomputed in numpy from the rows themselves, at every token of the response."""
    trunk, policy, sft, drawn = drawn_and()
    logits = rollouts.make_judge(MODEL, "log_ratio")(trunk, sft, drawn)
    batch, control, metrics = advantages(PolicySettings(kl=kl), drawn, logits)
    k1 = (scores(trunk, policy, drawn) - scores(trunk, sft, drawn)).sum(-1)
    reward = (scores(trunk, sft, drawn) - scores(trunk, None, drawn)).sum(-1)
    by_prompt = (reward - (0.3 * k1 if kl == "k1_reward" else 0.0)).reshape(2, 3)
    want = (by_prompt - (by_prompt.sum(1, keepdims=True) - by_prompt) / 2).reshape(-1, 1) * np.asarray(drawn.rows.mask)
    np.testing.assert_allclose(batch.advantage, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(metrics["kl"], k1.mean(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["reward"], reward.mean(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(drawn.behaviour_logprobs.sum(-1), scores(trunk, policy, drawn).sum(-1), rtol=1e-5, atol=1e-5)
    assert float(control.beta) == pytest.approx(0.3) and float(control.rewards.count) == 0


def test_dense_rewards_are_returns_to_go():
    trunk, policy, sft, drawn = drawn_and()
    dense = rollouts.make_judge(MODEL, "log_ratio_dense")(trunk, sft, drawn)
    np.testing.assert_allclose(dense.sum(-1), rollouts.make_judge(MODEL, "log_ratio")(trunk, sft, drawn), rtol=1e-5)
    batch, _, _ = advantages(PolicySettings(gamma=0.5), drawn, dense)
    mask = np.asarray(drawn.rows.mask)
    tokens = (np.asarray(dense, np.float64) - 0.3 * (scores(trunk, policy, drawn) - scores(trunk, sft, drawn))) * mask
    returns = np.zeros_like(tokens)
    for t in reversed(range(tokens.shape[1])):
        returns[:, t] = tokens[:, t] + (0.5 * returns[:, t + 1] if t + 1 < tokens.shape[1] else 0.0)
    returns = (returns * mask).reshape(2, 3, -1)
    baseline = (returns.sum(1, keepdims=True) - returns) / 2
    np.testing.assert_allclose(batch.advantage, ((returns - baseline).reshape(6, -1)) * mask, rtol=1e-4, atol=1e-4)


def test_a_learnt_token_reward_says_nothing_of_the_eos():
    trunk, _, _, drawn = drawn_and()
    ended = np.asarray(drawn.ended)
    assert ended.any() and not ended.all()
    logits = jnp.where(drawn.rows.mask > 0, 2.0, 0.0)
    settings = PolicySettings(kl="k2_loss", divergence="jensen_shannon", advantage="reinforce", gamma=0.0)
    batch, _, _ = advantages(settings, drawn, logits, eos_counts=False)
    at_last = np.asarray(batch.advantage)[np.arange(6), np.asarray(drawn.last)]
    before = np.asarray(batch.advantage)[np.arange(6), np.asarray(drawn.last) - 1]
    mask = np.asarray(drawn.rows.mask)
    softplus = np.log1p(np.exp(2.0))
    mean = softplus * (mask.sum() - ended.sum()) / mask.sum()
    np.testing.assert_allclose(at_last, np.where(ended, 0.0, softplus) - mean, rtol=1e-5)
    longer = mask.sum(1) > 1
    np.testing.assert_allclose(before[longer], softplus - mean, rtol=1e-5)


def test_running_statistics_and_the_tracked_coefficient():
    trunk, policy, sft, drawn = drawn_and()
    logits = jnp.arange(6.0) * 2
    settings = PolicySettings(normalise_rewards=True, target_kl=0.01, kl="k2_loss")
    batch, control, metrics = advantages(settings, drawn, logits)
    normal = ((np.arange(6) * 2 - 5) / np.std(np.arange(6) * 2)).reshape(2, 3)
    want = normal - (normal.sum(1, keepdims=True) - normal) / 2
    np.testing.assert_allclose(np.asarray(batch.advantage).max(1) + np.asarray(batch.advantage).min(1), want.reshape(-1), rtol=1e-3, atol=1e-3)
    assert float(control.rewards.count) == 6 and float(control.rewards.mean) == pytest.approx(5)
    assert float(control.beta) > 0.3 and float(metrics["beta"]) == pytest.approx(0.3)  # the KL is far above 0.01
    again, control, _ = advantages(settings, drawn, logits + 100, control)
    assert float(control.rewards.count) == 12 and float(control.rewards.mean) == pytest.approx(55)


def test_gae_has_values_and_their_targets():
    trunk, policy, sft, drawn = drawn_and()
    value = roles.init_leaves(jax.random.key(4), "policy", MODEL, 0, trunk, value=True)["value"]
    value["head"]["kernel"] = jax.random.normal(jax.random.key(5), (16, 1))
    settings = PolicySettings(advantage="gae", gae_lambda=1.0, value_coefficient=0.5, kl="k2_loss")
    batch, _, _ = advantages(settings, drawn, jnp.arange(6.0), leaves={"value": value}, trunk=trunk)
    mask = np.asarray(drawn.rows.mask)
    values = np.asarray(policy_steps.token_values(MODEL, trunk, value, drawn.rows))
    np.testing.assert_allclose(batch.returns, np.arange(6.0)[:, None] * mask, rtol=1e-4, atol=1e-4)  # lambda 1: the reward itself
    np.testing.assert_allclose(batch.advantage, (np.arange(6.0)[:, None] - values) * mask, rtol=1e-4, atol=1e-4)


def test_learnt_judge_reads_the_last_response_token():
    trunk = transformer.init_trunk(jax.random.key(0), MODEL)
    head = {"kernel": jax.random.normal(jax.random.key(3), (16, 1)), "bias": jnp.ones(1)}
    tokens = jnp.array([[[8, 1, 0]], [[9, 8, 1]]])
    mask = jnp.array([[[1, 1, 0]], [[1, 1, 1]]], jnp.float32)
    samples = SampleBatch(tokens, mask, jnp.ones((2, 1), bool), jnp.zeros((2, 1, 3)), None)
    rows, last, behaviour = rollouts.join_rows(PROMPTS, samples, pad_id=0)
    drawn = rollouts.Drawn(rows, last, samples.ended.reshape(-1), behaviour, behaviour, jnp.ones(last.shape))
    got = rollouts.make_judge(MODEL, "init_sft")(trunk, {"trunk": trunk, "head": head}, drawn)
    hidden = transformer.hidden_states(MODEL, {"params": trunk}, rows.tokens, rows.positions, rows.segments)
    want = [hidden[0, 3] @ head["kernel"][:, 0] + 1, hidden[1, 5] @ head["kernel"][:, 0] + 1]
    np.testing.assert_allclose(got, want, rtol=1e-5)
