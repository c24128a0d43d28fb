"""The policy's step: epochs and minibatches against updates one by one, and each term of the loss against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from irl_jax import policy_steps, roles, steps
from irl_jax.models.transformer import ModelConfig, hidden_states, init_trunk, vocab_logits
from irl_jax.policy_steps import PolicySettings
from irl_jax.types import PolicyBatch, TokenBatch

MODEL = ModelConfig(vocab_size=13, num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_width=32, max_positions=16,
                    adapter_scale=2.0)  # fmt: skip
TRUNK = jax.jit(lambda key: init_trunk(key, MODEL))(jax.random.key(1))
B, T = 8, 9


def leaves(value=False):
    drawn = jax.device_get(roles.init_leaves(jax.random.key(2), "policy", MODEL, 2, TRUNK, value=value))
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda x: (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32), drawn)


def batch(seed=0):
    rng, index = np.random.default_rng(seed), np.arange(T)[None]
    length = rng.integers(5, T + 1, (B, 1))
    inside = index < length
    mask = (inside & (index >= 2)).astype(np.float32)
    rows = TokenBatch(np.where(inside, rng.integers(1, 13, (B, T)), 0).astype(np.int32), np.where(inside, index, 0).astype(np.int32),
                      inside.astype(np.int32), mask)
    def tokens(centre, scale):
        return (rng.normal(centre, scale, size=(B, T)) * mask).astype(np.float32)

    weight = np.array([1, 1, 1, 0] * 2, np.float32)
    return PolicyBatch(rows, tokens(0, 1), tokens(-2.5, 0.3), tokens(-2.5, 0.3), tokens(0, 1), weight, weight)


def run(settings, beta=0.3, accumulate=1, optimizer=None, value=False, rng=5):
    optimizer = optimizer or optax.sgd(0.1)
    step = jax.jit(policy_steps.make_policy_step(MODEL, optimizer, settings, accumulate))
    return step(steps.init_state(leaves(value), optimizer, policy_steps.init_control(beta)), TRUNK, batch(), jax.random.key(rng))


def logprobs():
    own = roles.variables(TRUNK, leaves())
    r = batch().rows
    return np.asarray(steps.score_logprobs(MODEL, TRUNK, leaves(), r), np.float64), own


def test_epochs_and_minibatches_are_updates_one_by_one():
    settings, optimizer = PolicySettings(surrogate="ppo_clip", epochs=2, minibatches=2), optax.adam(1e-2)
    state, metrics = run(settings, optimizer=optimizer)
    single = jax.jit(policy_steps.make_policy_step(MODEL, optimizer, settings._replace(epochs=1, minibatches=1)))
    want, losses = steps.init_state(leaves(), optimizer, policy_steps.init_control(0.3)), []
    for key in jax.random.split(jax.random.key(5), 2):
        parts = policy_steps.minibatches(jax.tree.map(jnp.asarray, batch()), 2, key)
        orders = np.sort(np.asarray(parts.rows.tokens).reshape(B, T), axis=0)
        np.testing.assert_array_equal(orders, np.sort(batch().rows.tokens, axis=0))  # every row once an epoch
        for i in range(2):
            want, one = single(want, TRUNK, jax.tree.map(lambda leaf, i=i: leaf[i], parts), key)
            losses.append(float(one["loss"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.leaves, want.leaves)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
    assert int(state.step) == 1 and int(want.step) == 4
    assert float(metrics["tokens"]) == (batch().rows.mask * batch().weight[:, None]).sum()


@pytest.mark.parametrize("kl", ["k1_reward", "k2_loss", "k3_loss", "k3_weighted_loss"])
def test_the_kl_term_of_the_loss(kl):
    b, (own, _) = batch(), logprobs()
    w, mask = b.weight.astype(np.float64), b.rows.mask
    ratio = (b.reference_logprobs - own) * mask
    k3 = (np.exp(ratio) - ratio - 1) * mask
    term = {
        "k1_reward": np.zeros(B),
        "k2_loss": ratio.sum(1) ** 2 / 2,
        "k3_loss": k3.sum(1),
        "k3_weighted_loss": (np.exp((own - b.behaviour_logprobs) * mask) * k3).sum(1),
    }[kl]
    surrogate = -(b.advantage * own).sum(1)
    _, metrics = run(PolicySettings(kl=kl), beta=0.7)
    np.testing.assert_allclose(metrics["loss"], np.average(surrogate + 0.7 * term, weights=w), rtol=1e-5)


def test_the_clipped_surrogate_and_the_share_clipped():
    b, (own, _) = batch(), logprobs()
    ratio = np.exp((own - b.behaviour_logprobs) * b.rows.mask)
    parts = np.minimum(ratio * b.advantage, np.clip(ratio, 0.9, 1.1) * b.advantage) * b.rows.mask
    _, metrics = run(PolicySettings(surrogate="ppo_clip", clip_ratio=0.1))
    np.testing.assert_allclose(metrics["loss"], np.average(-parts.sum(1), weights=b.weight), rtol=1e-5)
    assert 0 < float(metrics["clipped"]) < 1


def test_the_entropy_bonus_is_exact():
    b, (own, variables) = batch(), logprobs()
    hidden = hidden_states(MODEL, variables, *b.rows[:3])
    probabilities = jax.nn.softmax(vocab_logits(MODEL, variables, hidden), axis=-1).astype(np.float64)
    entropies = np.pad(-(probabilities * np.log(probabilities)).sum(-1)[:, :-1], ((0, 0), (1, 0))) * b.rows.mask
    _, metrics = run(PolicySettings(entropy=0.4))
    loss = -(b.advantage * own).sum(1) - 0.4 * entropies.sum(1)
    np.testing.assert_allclose(metrics["loss"], np.average(loss, weights=b.weight), rtol=1e-5)
    weights = b.weight[:, None] * b.rows.mask
    np.testing.assert_allclose(metrics["entropy"], (weights * entropies).sum() / weights.sum(), rtol=1e-5)


def test_the_value_head_reads_the_state_before_each_token():
    b, own = batch(), leaves(value=True)["value"]
    values = np.asarray(policy_steps.token_values(MODEL, TRUNK, own, b.rows))
    hidden = np.asarray(hidden_states(MODEL, roles.variables(TRUNK, own), *b.rows[:3]))
    by_hand = hidden[2, 3] @ own["head"]["kernel"][:, 0] + own["head"]["bias"][0]
    np.testing.assert_allclose(values[2, 4], by_hand, rtol=1e-5)
    assert np.all(values[b.rows.mask == 0] == 0)
    changed = b.rows.tokens.copy()
    changed[2, 4] = changed[2, 4] % 12 + 1
    again = np.asarray(policy_steps.token_values(MODEL, TRUNK, own, b.rows._replace(tokens=changed)))
    np.testing.assert_array_equal(again[2, :5], values[2, :5])  # the token itself is not seen
    state, metrics = run(PolicySettings(advantage="gae", value_coefficient=0.5), value=True)
    error = 0.5 * ((values - b.returns) ** 2 * b.rows.mask).sum(1)
    np.testing.assert_allclose(metrics["value_loss"], np.average(error, weights=b.weight), rtol=1e-5)
    moved = jax.tree.map(lambda a, c: float(np.abs(a - c).max()), state.leaves["value"]["head"], own["head"])
    assert moved["kernel"] > 0 and moved["bias"] > 0
