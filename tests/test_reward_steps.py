"""The reward's losses against numpy, what they may not learn from, its penalties, ensembles, bodies and scores."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from irl_jax import reward_steps, roles, sharding, steps
from irl_jax.errors import UserError
from irl_jax.models.transformer import ModelConfig, hidden_states, init_trunk
from irl_jax.reward_steps import RewardSettings
from irl_jax.roles import RewardSpec
from irl_jax.stages import reward as reward_stage
from irl_jax.stages import scoring
from irl_jax.types import Example, RewardBatch, TokenBatch

MODEL = ModelConfig(vocab_size=13, num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=24,
                    max_positions=16, positions="rotary", norm="rms", gated_mlp=True, activation="silu", use_bias=False,
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
def _scorer(granularity):
    return jax.jit(lambda leaves, batch: reward_steps.score_member_rewards(MODEL, TRUNK, leaves, batch, granularity))


def members_of(leaves, batch, granularity="response"):
    return np.asarray(_scorer(granularity)(leaves, batch), np.float64)


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
    batch, step = unlike_in_length_only(), compiled("bce", settings, 1, 1.0)
    state = steps.init_state(roles.init_leaves(KEY, "reward", MODEL, 4, TRUNK), optax.sgd(1.0))
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


# ------------------------------------------------------------------------------------------------------- scores
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


# ----------------------------------------------------------------------------------------------------- settings
def test_settings_are_read_from_the_config():
    config = ConfigDict({"granularity": "token", "label_smoothing": 0.1, "gradient_penalty": 0.2, "spectral_norm": 0.3, "steps": 5})
    assert RewardSettings.of(config, [EOS, 3]) == RewardSettings("token", 0.1, 0.2, 0.3, (EOS, 3))


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(UserError, match="compare whole responses"):
        reward_steps.make_reward_step(MODEL, optax.sgd(0.1), loss="bradley_terry", settings=TOKEN)
    with pytest.raises(UserError, match="reward loss 'hinge'"):
        reward_steps.make_reward_step(MODEL, optax.sgd(0.1), loss="hinge")
