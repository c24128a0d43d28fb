"""The reward's losses against numpy, what they may not learn from, its penalties, ensembles and bodies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from reward_batches import (
    EOS,
    KEY,
    MODEL,
    PLAIN,
    TOKEN,
    TRUNK,
    B,
    T,
    batch_of,
    close,
    compiled,
    gradient,
    members_of,
    prefix_by_loop,
    random_batch,
    run,
    same_update,
    start,
    token_logits_of,
)

from irl_jax import reward_steps, roles, sharding, steps
from irl_jax.errors import UserError
from irl_jax.models.transformer import hidden_states
from irl_jax.reward_steps import RewardSettings
from irl_jax.roles import RewardSpec


# ------------------------------------------------------------------------------------------------- the two losses
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_bce_loss_and_its_statistics_by_source(smoothing):
    batch = random_batch()
    h, w, positive = members_of(start(), batch)[0], batch.weight.astype(np.float64), batch.label == 1
    assert np.ptp(h) > 0.01
    _, metrics = run(batch, settings=RewardSettings(label_smoothing=smoothing))
    target = np.where(positive, 1 - smoothing, smoothing)
    losses = target * np.log1p(np.exp(-h)) + (1 - target) * np.log1p(np.exp(h))
    right = np.where(positive, h > 0, h < 0)
    want = {
        "loss": np.average(losses, weights=w),
        "accuracy": np.average(right, weights=w),
        "accuracy_positive": np.average(right[positive], weights=w[positive]),
        "accuracy_negative": np.average(right[~positive], weights=w[~positive]),
        "logit_positive": np.average(h[positive], weights=w[positive]),
        "logit_negative": np.average(h[~positive], weights=w[~positive]),
        "tokens": batch.rows.mask.sum(),
    }
    close({name: metrics[name] for name in want}, want)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_bradley_terry_compares_rows_half_a_batch_apart(smoothing):
    batch = random_batch(weight=(1, 1, 0.5, 1, 1, 0.25, 1, 1))
    h = members_of(start(), batch)[0]
    difference, w = h[: B // 2] - h[B // 2 :], np.minimum(batch.weight[: B // 2], batch.weight[B // 2 :])
    _, metrics = run(batch, "bradley_terry", RewardSettings(label_smoothing=smoothing))
    losses = (1 - smoothing) * np.log1p(np.exp(-difference)) + smoothing * np.log1p(np.exp(difference))
    close((metrics["loss"], metrics["accuracy"]), (np.average(losses, weights=w), np.average(difference > 0, weights=w)))


def test_reward_logit_is_read_at_the_last_response_token():
    batch = random_batch()
    want = members_of(start(), batch)
    after = np.arange(T)[None] > batch.last[:, None]
    changed = batch._replace(rows=batch.rows._replace(tokens=np.where(after, 7, batch.rows.tokens)))
    np.testing.assert_array_equal(members_of(start(), changed), want)
    tokens = batch.rows.tokens.copy()
    tokens[np.arange(B), batch.last] = tokens[np.arange(B), batch.last] % 12 + 1
    changed = batch._replace(rows=batch.rows._replace(tokens=tokens))
    assert np.all(members_of(start(), changed) != want)


# ----------------------------------------------------------------------------------------------- token by token
def test_only_the_common_prefix_counts():
    counted = 0
    for seed in range(6):
        batch = random_batch(seed)
        want = prefix_by_loop(batch)
        np.testing.assert_array_equal(reward_steps._counted(batch, TOKEN), want)
        assert not want[1].any() and not want[1 + B // 2].any()  # beside an empty response
        assert not want[batch.rows.tokens == EOS].any()
        counted += want.sum()
    assert counted > 40
    assert reward_steps._counted(batch, RewardSettings()) is None


def test_every_counted_token_weighs_the_same():
    batch = random_batch(weight=(1, 1, 0.5, 1, 1, 0.25, 1, 1))
    h, pairs = token_logits_of(start(), batch.rows), np.minimum(batch.weight[: B // 2], batch.weight[B // 2 :])
    w = prefix_by_loop(batch) * np.tile(pairs, 2)[:, None]
    labels = batch.label[:, None]
    losses = labels * np.log1p(np.exp(-h)) + (1 - labels) * np.log1p(np.exp(h))
    right = np.where(labels == 1, h > 0, h < 0)
    _, metrics = run(batch, settings=TOKEN)
    close((metrics["loss"], metrics["accuracy"]), (np.average(losses, weights=w), np.average(right, weights=w)))


def unlike_in_length_only():
    """Classes that differ in length and in ending, and in no token before: the shorter response is the longer one's head."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 12, 2) for _ in range(4)] * 2
    text = [list(rng.integers(1, 12, 6)) for _ in range(4)]
    positives = [text[0][:6] + [EOS], text[1][:5] + [EOS], text[2][:6], text[3][:6] + [EOS]]
    negatives = [text[0][:2], text[1][:3] + [EOS], text[2][:2] + [EOS], text[3][:3] + [EOS]]
    return batch_of(prompts, positives + negatives)


def trained_loss(settings):
    batch, step = unlike_in_length_only(), compiled("bce", settings, 1, 0.3)
    state = steps.init_state(roles.init_leaves(KEY, "reward", MODEL, 4, TRUNK), optax.sgd(0.3))
    for _ in range(80):
        state, metrics = step(state, TRUNK, batch, KEY)
    return float(metrics["loss"]), state.leaves


def test_neither_length_nor_eos_can_be_learnt_token_by_token():
    loss, leaves = trained_loss(TOKEN)
    np.testing.assert_allclose(loss, np.log(2), atol=1e-5)
    batch = unlike_in_length_only()
    h, counted = token_logits_of(leaves, batch.rows), prefix_by_loop(batch) > 0
    positive, negative = (np.sort(h[part][counted[part]]) for part in (slice(0, 4), slice(4, 8)))
    np.testing.assert_allclose(positive, negative, atol=1e-5)  # the same logits in both classes: an AUC of 1/2
    # ... while a logit at the end, or tokens that take EOS for one of them, tell the classes apart
    others = [trained_loss(settings)[0] for settings in (RewardSettings(), RewardSettings("token"))]
    assert max(others) < np.log(2) - 0.05, others


def test_a_fresh_token_reward_has_no_reason_to_prefer_a_class():
    batch, leaves = unlike_in_length_only(), roles.init_leaves(KEY, "reward", MODEL, 4, TRUNK)
    state, metrics = run(batch, settings=TOKEN, leaves=leaves)
    np.testing.assert_allclose(metrics["loss"], np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(state.leaves["head"]["bias"], 0.0)  # as many positives as negatives
    np.testing.assert_allclose(gradient(state, leaves)["head"]["kernel"], 0.0, atol=1e-6)
    state, _ = run(batch, leaves=leaves)
    assert np.abs(gradient(state, leaves)["head"]["kernel"]).max() > 1e-2


@pytest.mark.parametrize(("loss", "settings"), [
    ("bce", PLAIN), ("bradley_terry", PLAIN._replace(label_smoothing=0.1)), ("bce", TOKEN), ("bce", TOKEN._replace(gradient_penalty=2.0))])
def test_what_a_pair_of_weight_zero_holds_does_not_matter(loss, settings):
    weight = (0, 1, 0.5, 1) * 2
    first = random_batch(weight=weight)
    other = random_batch(seed=5, weight=weight)
    out = first.weight == 0
    mix = lambda a, b: np.where(out.reshape(-1, *[1] * (a.ndim - 1)), b, a)
    second = jax.tree.map(mix, first, other)
    assert np.any(first.rows.tokens != second.rows.tokens) and prefix_by_loop(first)[out].any() and prefix_by_loop(second)[out].any()
    (one, metrics_one), (two, metrics_two) = (run(batch, loss, settings) for batch in (first, second))
    same_update(two.leaves, one.leaves, start())
    close(metrics_two, metrics_one)


# -------------------------------------------------------------------------------------------- gradient penalty
@functools.cache
def _shifted(kind):
    """The penalised quantity, one a row, of the embeddings shifted at one place: (leaves, batch, counted, shift) -> [B]."""

    def value(leaves, batch, counted, shift):
        hidden = hidden_states(MODEL, roles.variables(TRUNK, leaves), *batch.rows[:3], jnp.broadcast_to(shift, (B, T, MODEL.width)))
        h = (hidden @ leaves["head"]["kernel"])[..., 0]
        return jnp.sum(h * counted, -1) if kind == "token" else h[jnp.arange(B), batch.last]

    return jax.jit(jax.vmap(value, (None, None, None, 0)))


def squared_gradients(kind, leaves, batch):
    """|d h / d embeddings|^2 of each row by central differences; rows do not see one another, so all are shifted at once."""
    eps = 1e-2
    shifts = np.eye(T * MODEL.width, dtype=np.float32).reshape(-1, T, MODEL.width) * eps
    counted = prefix_by_loop(batch).astype(np.float32)
    up, down = (np.asarray(_shifted(kind)(leaves, batch, counted, sign * shifts), np.float64) for sign in (1, -1))
    return (((up - down) / (2 * eps)) ** 2).sum(0)


@pytest.mark.parametrize(("loss", "kind"), [("bce", "response"), ("bce", "token"), ("bradley_terry", "response")])
def test_the_penalty_is_the_mean_squared_gradient_by_the_embeddings(loss, kind):
    batch, plain = random_batch(), RewardSettings(kind, eos_ids=(EOS,))
    squares, w = squared_gradients(kind, start(), batch), batch.weight * (prefix_by_loop(batch).any(1) if kind == "token" else 1)
    mean = np.average(squares, weights=w)
    assert mean > 1e-3 and np.ptp(squares) > 0.1 * mean
    _, without = run(batch, loss, plain)
    _, metrics = run(batch, loss, plain._replace(gradient_penalty=3.0))
    np.testing.assert_allclose(metrics["gradient_penalty"], mean, rtol=1e-2)
    np.testing.assert_allclose(metrics["loss"] - without["loss"], 1.5 * mean, rtol=1e-2)
    close(metrics["accuracy"], without["accuracy"])


@pytest.mark.parametrize("kind", ["response", "token"])
def test_training_follows_the_penalty(kind):
    """The step's gradient, along itself, is the slope of the loss: the penalty is differentiated a second time."""
    batch, settings = random_batch(), RewardSettings(kind, gradient_penalty=50.0, eos_ids=(EOS,))
    state, metrics = run(batch, settings=settings)
    g = gradient(state, start())
    size = float(metrics["grad_norm"])
    assert np.isfinite(size) and size > 2 * float(run(batch, settings=settings._replace(gradient_penalty=0.0))[1]["grad_norm"])
    at = lambda step: float(run(batch, settings=settings, leaves=jax.tree.map(
        lambda x, d: (x + step * d / size).astype(np.float32), start(), g))[1]["loss"])
    small = 2e-3
    np.testing.assert_allclose((at(small) - at(-small)) / (2 * small), size, rtol=2e-2)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_attention_is_differentiated_twice(name):
    """One entry of each projection's adapter: the slope of the penalised loss, whose penalty is most of it."""
    batch, settings = random_batch(), RewardSettings(gradient_penalty=50.0)
    state, _ = run(batch, settings=settings)
    slopes = gradient(state, start())["adapter"]["blocks"]["attention"][name]["b"]
    entry = np.unravel_index(np.argmax(np.abs(slopes)), slopes.shape)

    def at(step, settings):
        leaves = jax.tree.map(np.copy, start())
        leaves["adapter"]["blocks"]["attention"][name]["b"][entry] += step
        return float(run(batch, settings=settings, leaves=leaves)[1]["loss"])

    slope = lambda settings: (at(5e-3, settings) - at(-5e-3, settings)) / 1e-2
    np.testing.assert_allclose(slopes[entry], slope(settings), rtol=2e-2)
    assert abs(slope(PLAIN)) < 0.2 * abs(slopes[entry])


def test_micro_batches_keep_the_penalty_of_whole_responses():
    batch, settings = random_batch(), RewardSettings(gradient_penalty=3.0)
    one, metrics_one = run(batch, settings=settings)
    four, metrics_four = run(batch, settings=settings, accumulate=4)
    same_update(four.leaves, one.leaves, start())
    close(metrics_four, metrics_one)


# ------------------------------------------------------------------------------------------------- spectral cap
@pytest.mark.parametrize("members", [1, 2])
def test_effective_leaves_are_below_the_cap(members):
    leaves = start(RewardSpec(head="mlp", mlp_width=8, ensemble=members))
    capped = jax.device_get(reward_steps.effective(leaves, RewardSettings(spectral_norm=0.3), MODEL))
    assert reward_steps.effective(leaves, RewardSettings(), MODEL) is leaves
    for one in (jax.tree.map(lambda x, e=e: x[e], capped["members"]) if members > 1 else capped for e in range(members)):
        pairs = [pair for group in one["adapter"]["blocks"].values() for pair in group.values()]
        found = [MODEL.adapter_scale * pair["a"][0] @ pair["b"][0] for pair in pairs]
        found += [one["head"]["kernel"], one["head"]["hidden"]["kernel"]]
        norms = [np.linalg.svd(matrix, compute_uv=False)[0] for matrix in found]
        assert max(norms) <= 0.3 * 1.001 and min(norms) > 0.29  # all were above it, or the test would show nothing


def test_the_loss_is_that_of_the_capped_leaves():
    settings, batch = RewardSettings(spectral_norm=0.3), random_batch()
    loss_of = lambda h: np.average(np.log1p(np.exp(np.where(batch.label == 1, -h, h))), weights=batch.weight)
    want = loss_of(members_of(reward_steps.effective(start(), settings, MODEL), batch)[0])
    _, metrics = run(batch, settings=settings)
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
    assert abs(loss_of(members_of(start(), batch)[0]) - want) > 1e-3 and np.isfinite(metrics["grad_norm"])


# ---------------------------------------------------------------------------------------------------- ensembles
@pytest.mark.parametrize(("loss", "settings"), [
    ("bce", RewardSettings()), ("bradley_terry", RewardSettings()), ("bce", TOKEN._replace(gradient_penalty=1.0))])  # fmt: skip
def test_each_member_follows_its_own_loss_on_its_own_bootstrap(loss, settings):
    spec = RewardSpec(ensemble=3)
    leaves, batch, losses = start(spec), random_batch(), []
    weights = np.asarray(reward_steps._bootstrap(KEY, 3, jnp.asarray(batch.weight)))
    state, metrics = run(batch, loss, settings, leaves)
    for member in range(3):
        own = jax.tree.map(lambda x, e=member: x[e], leaves["members"])
        alone, metrics_alone = run(batch._replace(weight=weights[member]), loss, settings, own)
        same_update(jax.tree.map(lambda x, e=member: x[e], state.leaves["members"]), alone.leaves, own)
        losses.append(float(metrics_alone["loss"]))
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
    assert np.ptp(losses) > 1e-3


def test_the_bootstrap_is_poisson_by_pair_and_member():
    weights = np.repeat([1.0, 0.5, 0.0, 1.0], 500).astype(np.float32)
    weights = np.concatenate([weights, weights])
    draws = np.asarray(reward_steps._bootstrap(KEY, 4, jnp.asarray(weights)))
    np.testing.assert_array_equal(draws[:, :2000], draws[:, 2000:])  # a pair stays a pair
    counts = draws[:, :500]
    np.testing.assert_allclose([counts.mean(), counts.var(), (counts == 0).mean()], [1, 1, np.exp(-1)], atol=0.1)
    assert not draws[:, weights == 0].any() and abs(np.corrcoef(draws[:, 1500:2000])[0, 1]) < 0.2


# --------------------------------------------------------------------------------------------- bodies and trunk
@pytest.mark.parametrize(("spec", "names", "rank"), [
    (RewardSpec(), {"adapter", "head"}, 4),
    (RewardSpec(), {"trunk", "head"}, 0),
    (RewardSpec("trunk"), {"trunk", "head"}, 4),
    (RewardSpec("frozen", "mlp", 8), {"head"}, 4),
    (RewardSpec("frozen", ensemble=2), {"head"}, 0),
    (RewardSpec(head="mlp", mlp_width=8, ensemble=2), {"adapter", "head"}, 4),
])  # fmt: skip
def test_only_the_body_is_trained_and_the_trunk_never(spec, names, rank):
    mesh = sharding.make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}), devices=jax.devices()[:1])
    trunk = sharding.place(TRUNK, mesh)
    before = jax.tree.map(lambda x: np.asarray(x).tobytes(), trunk)
    optimizer = optax.adam(1e-2)
    leaves = start(spec, rank)
    state = sharding.place(steps.init_state(leaves, optimizer), mesh)
    own = state.leaves["members"] if spec.ensemble > 1 else state.leaves
    assert set(own) == names
    if names == {"head"}:  # nothing of the trunk's in the state, moments included
        sizes = {leaf.size for leaf in jax.tree.leaves(state)}
        assert max(sizes) <= spec.ensemble * MODEL.width * (spec.mlp_width if spec.head == "mlp" else 1)
    step = sharding.compile_step(reward_steps.make_reward_step(MODEL, optimizer), mesh, donate=(0,))
    state, metrics = step(state, trunk, sharding.put_batch(random_batch(), mesh), KEY)
    assert float(metrics["grad_norm"]) > 0
    for name in names:
        moved = jax.tree.map(lambda new, old: bool(np.any(new != old)), state.leaves, leaves)
        assert any(jax.tree.leaves((moved["members"] if spec.ensemble > 1 else moved)[name])), name
    assert jax.tree.map(lambda x: np.asarray(x).tobytes(), trunk) == before


def test_a_head_with_a_hidden_layer_learns_on_a_frozen_body():
    batch, step = unlike_in_length_only(), compiled("bce", PLAIN, 1, 0.3)
    leaves = roles.init_leaves(KEY, "reward", MODEL, 4, TRUNK, reward=RewardSpec("frozen", "mlp", 8))
    state, losses = steps.init_state(leaves, optax.sgd(0.3)), []
    for _ in range(40):
        state, metrics = step(state, TRUNK, batch, KEY)
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(np.log(2)) and losses[-1] < 0.5, losses
    assert np.any(state.leaves["head"]["hidden"]["kernel"] != leaves["head"]["hidden"]["kernel"])


# ----------------------------------------------------------------------------------------------------- settings
def test_settings_are_read_from_the_config():
    config = ConfigDict({"granularity": "token", "label_smoothing": 0.1, "gradient_penalty": 0.2, "spectral_norm": 0.3, "steps": 5})
    assert RewardSettings.of(config, [EOS, 3]) == RewardSettings("token", 0.1, 0.2, 0.3, (EOS, 3))


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(UserError, match="compare whole responses"):
        reward_steps.make_reward_step(MODEL, optax.sgd(0.1), loss="bradley_terry", settings=TOKEN)
    with pytest.raises(UserError, match="reward loss 'hinge'"):
        reward_steps.make_reward_step(MODEL, optax.sgd(0.1), loss="hinge")
