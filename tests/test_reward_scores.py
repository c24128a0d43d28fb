"""Scores of rewards: of members, of tokens, without length, and of lists of examples."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from reward_batches import EOS, KEY, MODEL, TRUNK, B, T, close, members_of, random_batch, start, token_logits_of

from irl_jax import reward_steps, roles, sharding, steps
from irl_jax.roles import RewardSpec
from irl_jax.stages import reward as reward_stage
from irl_jax.stages import scoring
from irl_jax.types import Example, TokenBatch


@pytest.mark.parametrize("granularity", ["response", "token"])
def test_an_ensembles_score_is_made_of_its_members(granularity):
    leaves, batch = start(RewardSpec(ensemble=3)), random_batch()
    single = [jax.tree.map(lambda x, e=e: x[e], leaves["members"]) for e in range(3)]
    want = np.concatenate([members_of(one, batch, granularity) for one in single])
    assert want.shape == (3, B) and np.all(want.std(0) > 1e-4)
    close(members_of(leaves, batch, granularity), want)
    combine = {"mean": want.mean(0), "min": want.min(0), "mean_minus_std": want.mean(0) - want.std(0)}
    for name, value in combine.items():
        close(reward_steps.score_rewards(MODEL, TRUNK, leaves, batch, granularity, name), value)
        close(reward_steps.combined(want, name, np), value)


def test_a_token_rewards_score_is_the_mean_before_the_last_token():
    batch = random_batch()
    logits = token_logits_of(start(), batch.rows)
    for row, got in enumerate(members_of(start(), batch, "token")[0]):
        inside = np.flatnonzero(batch.rows.mask[row])
        inside = inside[:-1] if len(inside) > 1 else inside  # a response of one token has its own
        np.testing.assert_allclose(got, logits[row, inside].mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("combine", ["mean", "min", "mean_minus_std"])
def test_rewards_of_tokens_are_zero_outside_and_at_the_eos(combine):
    leaves, batch = start(RewardSpec(ensemble=2)), random_batch()
    ended = batch.rows.tokens[np.arange(B), batch.last] == EOS
    got = np.asarray(reward_steps.score_token_rewards(MODEL, TRUNK, leaves, batch.rows, jnp.asarray(ended), combine))
    members = np.stack([token_logits_of(jax.tree.map(lambda x, e=e: x[e], leaves["members"]), batch.rows) for e in range(2)])
    counts = (batch.rows.mask > 0) & ~((np.arange(T) == batch.last[:, None]) & ended[:, None])
    close(got, np.where(counts, reward_steps.combined(members, combine, np), 0.0))
    assert ended.any() and not ended.all() and got.dtype == np.float32


def test_the_length_leaf_takes_its_slope_off():
    batch, leaves = random_batch(), start()
    length = {"slope": np.float32(0.25), "centre": np.float32(3.0)}
    want = members_of(leaves, batch) - 0.25 * (batch.rows.mask.sum(1) - 3.0)
    close(members_of({**leaves, "length": length}, batch), want)


@pytest.mark.parametrize("members", [1, 3])
def test_the_length_residual_is_least_squares_within_the_classes(members):
    rng = np.random.default_rng(0)
    examples = [Example(np.array([1]), np.ones(n, np.int32), True) for n in rng.integers(2, 30, 40)]
    parts = examples[:15], examples[15:]
    lengths, label = np.array([len(e.response) for e in examples], float), np.repeat([1.0, 0.0], [15, 25])
    logits = rng.normal(size=(members, 40)) + 2 * label + 0.1 * np.arange(1, members + 1)[:, None] * lengths
    context = SimpleNamespace(scorer=SimpleNamespace(member_rewards=lambda leaves, examples: logits))
    leaves = start(RewardSpec(ensemble=members))
    got = reward_stage.without_length(context, leaves, parts)
    own = got["members"]["length"] if members > 1 else jax.tree.map(lambda x: x[None], got["length"])
    design = np.stack([np.ones(40), label, lengths], 1)
    np.testing.assert_allclose(own["slope"], np.linalg.lstsq(design, logits.T, rcond=None)[0][2], rtol=1e-4)
    np.testing.assert_allclose(own["centre"], lengths.mean(), rtol=1e-6)
    spec = RewardSpec(ensemble=members, length_residual=True)
    finished = roles.finished_leaves(KEY, "reward", MODEL, 4, TRUNK, reward=spec)
    assert jax.tree.map(np.shape, finished) == jax.tree.map(np.shape, got)  # what a later run reads back


@pytest.mark.parametrize("granularity", ["response", "token"])
def test_the_scorer_keeps_the_order_of_unlike_lengths(granularity):
    mesh = sharding.make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}), devices=jax.devices()[:1])
    scorer = scoring.Scorer(MODEL, mesh, TRUNK, longest=T, rows=4)
    batch, leaves = random_batch(), start(RewardSpec(ensemble=2))
    examples = [Example(r.tokens[(r.segments == 1) & (r.mask == 0)], r.tokens[r.mask == 1], False)
                for r in (TokenBatch(*rows) for rows in zip(*batch.rows, strict=True))]  # fmt: skip
    want = members_of(leaves, batch, granularity)
    close(scorer.member_rewards(leaves, examples, granularity), want)
    close(scorer.rewards(leaves, examples, granularity, "min"), want.min(0))
    assert scorer.member_rewards(start(), examples, granularity).shape == (1, B)


def test_the_scorers_log_probs_of_tokens_stand_at_their_tokens():
    mesh = sharding.make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}), devices=jax.devices()[:1])
    scorer = scoring.Scorer(MODEL, mesh, TRUNK, longest=T + 3, rows=2)
    rows = random_batch().rows
    want, inside = np.asarray(steps.score_logprobs(MODEL, TRUNK, None, rows)), rows.mask == 1
    examples = [Example(rows.tokens[i][(rows.segments[i] == 1) & ~inside[i]], rows.tokens[i][inside[i]], False) for i in range(B)]
    got = scorer.token_logprobs(None, examples)
    assert len({len(example.response) for example in examples}) > 1
    for i, own in enumerate(got):
        close(own, want[i][inside[i]])
    close(np.array([own.sum() for own in got]), scorer.logprobs(None, examples))
