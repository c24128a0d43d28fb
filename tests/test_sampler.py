"""The sampler: it draws what the model says, tells the right log-probs, and depends on nothing but (key, prompt, k, t)."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import irl_jax.sampler as module
from irl_jax import drawing
from irl_jax.data.batching import PADDING_ID, plan_groups, prompt_batch
from irl_jax.drawing import draw, filter_logits
from irl_jax.errors import UserError
from irl_jax.models.logprobs import token_logprobs
from irl_jax.models.transformer import ModelConfig, hidden_states, init_trunk, vocab_logits
from irl_jax.sampler import make_sampler, sample_prompts
from irl_jax.stages.scoring import examples_of

GPT2 = ModelConfig(
    vocab_size=11, num_layers=2, width=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_width=32, max_positions=40
)
LLAMA = ModelConfig(
    vocab_size=11, num_layers=2, width=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_width=24, max_positions=40,
    positions="rotary", norm="rms", gated_mlp=True, activation="silu", qkv_bias=False, output_bias=False, mlp_bias=False, tie_embeddings=False,
)  # fmt: skip
EOS, PAD = 2, 0
KEY = jax.random.key(7)
PROMPTS = [np.asarray(p, np.int32) for p in ([5], [1, 2, 9, 4, 4], [8, 8, 6])]


@functools.cache
def make(config=GPT2, scale=2.0):
    """A model whose distributions are far from uniform and differ from place to place."""
    return {"params": jax.tree.map(lambda leaf: leaf * scale, init_trunk(jax.random.key(1), config))}


@functools.cache
def jitted(config, **settings):
    return jax.jit(make_sampler(config, **settings))


def sample(prompts=PROMPTS, ids=None, config=GPT2, scale=2.0, key=KEY, length=6, rows=None, **settings):
    settings = {"samples": 3, "max_tokens": 8, "eos_ids": (EOS,), "pad_id": PAD, "with_logprobs": True, **settings}
    sampler = jitted(config, **settings)
    ids = range(len(prompts)) if ids is None else ids
    batch = sampler(make(config, scale), prompt_batch(prompts, list(ids), length, rows), key)
    return type(batch)(*(None if part is None else np.asarray(part) for part in batch))


@functools.partial(jax.jit, static_argnums=0)
def scored(config, variables, tokens, segments):
    """Logits [1, T, V] and token log-probs [1, T] by the uncached forward pass."""
    positions = jnp.arange(tokens.shape[1])[None]
    logits = vocab_logits(config, variables, hidden_states(config, variables, tokens, positions, segments))
    return logits, token_logprobs(config, variables, tokens, positions, segments)


def full_forward(config, variables, sequence, length=16):
    """Float64 logits [T, V] and token log-probs [T] of one sequence, padded to one shape for all."""
    tokens = np.zeros((1, length), np.int32)
    tokens[0, : len(sequence)] = sequence
    logits, logprobs = scored(config, variables, tokens, (np.arange(length) < len(sequence)).astype(np.int32)[None])
    return np.asarray(logits, np.float64)[0, : len(sequence)], np.asarray(logprobs)[0, : len(sequence)]


def full_logits(config, variables, sequence):
    return full_forward(config, variables, sequence)[0]


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


# ---- one token ----


def test_draw_is_the_inverse_of_the_distribution():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=300).astype(np.float32) * 2
    logits[generator.random(300) < 0.3] = -np.inf
    uniform = (np.arange(100_000) + 0.5) / 100_000
    tokens = np.asarray(jax.vmap(draw, (None, 0))(jnp.asarray(logits), jnp.asarray(uniform, jnp.float32))[0])
    expected = np.exp(log_softmax(logits.astype(np.float64))) * 100_000
    counts = np.bincount(tokens, minlength=300)
    assert np.abs(counts - expected).max() < 3 and (counts[np.isneginf(logits)] == 0).all()
    assert (np.diff(tokens) >= 0).all()


@pytest.mark.parametrize("size", [5, 64, 65, 500])
def test_draw_never_takes_what_has_no_probability(size):
    logits = np.full((4, size), -np.inf, np.float32)
    for row, token in enumerate((0, size // 2, size - 1)):
        logits[row, token] = -3.0
    logits[3, 1:-1] = np.linspace(-30, 0, size - 2)
    edges = jnp.asarray([0.0, 0.5, np.nextafter(np.float32(1), np.float32(0)), 1.0], jnp.float32)
    tokens = np.asarray(draw(jnp.asarray(logits)[:, None], jnp.broadcast_to(edges, (4, 4)))[0])
    assert (tokens[:3] == np.asarray([[0], [size // 2], [size - 1]])).all()
    assert ((tokens[3] > 0) & (tokens[3] < size - 1)).all() and tokens[3, 0] == 1 and tokens[3, 3] == size - 2


def test_rounded_sums_do_not_make_a_token_possible():
    generator = np.random.default_rng(0)
    weights = jnp.asarray(generator.random((50, 500)) * (generator.random((50, 500)) < 0.3), jnp.float32)
    running = jnp.cumsum(weights, axis=-1)
    grown = np.asarray((running[:, 1:] > running[:, :-1]) & (weights[:, 1:] == 0))
    assert grown.any()  # prefix sums are taken in a tree: some grow at a weight of 0
    index, _ = drawing._passing(weights[:, None], running)
    chosen = np.take_along_axis(np.asarray(weights), np.asarray(index), axis=1)
    assert (chosen > 0).all()


def numpy_filter(logits, temperature, top_k, top_p):
    """The filtered distribution, token by token, in float64."""
    logits = np.asarray(logits, np.float64) / temperature
    order = np.argsort(-logits)
    if top_k:
        order = order[:top_k]
    probabilities = np.exp(logits[order] - logits.max())
    probabilities /= probabilities.sum()
    number = 1
    while probabilities[:number].sum() < top_p and number < len(order):
        number += 1
    result = np.zeros(len(logits))
    result[order[:number]] = probabilities[:number] / probabilities[:number].sum()
    return result


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (1, 1.0), (4, 1.0), (50, 1.0), (0, 0.3), (0, 0.9), (0, 1e-6), (5, 0.8)])
def test_filters(temperature, top_k, top_p):
    logits = np.random.default_rng(2).normal(size=(6, 20)).astype(np.float32) * 3
    ours = np.asarray(jax.nn.softmax(filter_logits(jnp.asarray(logits), temperature, top_k, top_p)), np.float64)
    expected = np.stack([numpy_filter(row, temperature, top_k, top_p) for row in logits])
    assert ((ours > 0) == (expected > 0)).all()
    np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize(("logits", "top_k", "top_p", "kept"), [
    ([1.0, 3.0, 3.0, 0.0], 1, 1.0, [1, 2]),  # ties stay
    ([1.0, 3.0, 3.0, 0.0], 0, 0.3, [1, 2]),
    ([0.0, -0.0, -1.0], 1, 1.0, [0, 1]),
    ([-3.0, -0.0, 0.0, 5.0], 2, 1.0, [1, 2, 3]),
    ([-np.inf, 2.0, -np.inf], 2, 1.0, [1]),  # what was impossible stays so
    ([-np.inf, 2.0, -np.inf, 2.0], 0, 0.99, [1, 3]),
    ([3e38, -3e38, 1e-40, -1e-40], 1, 1.0, [0]),
    ([-200.0, -100.0, -300.0], 0, 0.5, [1]),
    ([-200.0, -100.0, -300.0], 2, 1.0, [0, 1]),
    ([7.0], 3, 0.5, [0]),
])  # fmt: skip
def test_filters_at_the_edges(logits, top_k, top_p, kept):
    ours = np.asarray(filter_logits(jnp.asarray(logits, jnp.float32), 1.0, top_k, top_p))
    assert np.flatnonzero(np.isfinite(ours)).tolist() == kept and (ours[kept] == np.float32(logits)[kept]).all()


def test_filters_of_a_large_vocabulary_keep_what_sorting_does():
    logits = np.random.default_rng(3).normal(size=(3, 30_000)).astype(np.float32) * 3
    for row, by_k, by_p in zip(logits, *(np.asarray(filter_logits(jnp.asarray(logits), **only)) for only in ({"top_k": 700}, {"top_p": 0.9})),
                               strict=True):
        assert set(np.flatnonzero(np.isfinite(by_k))) == set(np.argsort(-row)[:700])
        mass = np.sort(np.exp(np.float64(row)))[::-1].cumsum()
        count = int(np.searchsorted(mass, 0.9 * mass[-1])) + 1
        kept = np.isfinite(by_p)
        assert abs(int(kept.sum()) - count) <= 2 and row[kept].min() > row[~kept].max()  # float32 sums of 30,000 round


# ---- whole samples ----


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}], ids=str)
def test_frequencies_are_the_models(settings):
    config, number = dataclasses.replace(GPT2, vocab_size=6, num_layers=1), 6000
    variables = make(config, 1.2)
    batch = sample([np.asarray([4, 1])], config=config, scale=1.2, samples=number, max_tokens=2, **settings)
    filters = [settings.get(name, default) for name, default in (("temperature", 1), ("top_k", 0), ("top_p", 1))]
    reference = lambda logits: numpy_filter(logits, *filters)
    first = reference(full_logits(config, variables, [4, 1])[-1])
    expected = {}
    for a, b in itertools.product(range(6), range(6)):
        if a != EOS:
            expected[a, b] = first[a] * reference(full_logits(config, variables, [4, 1, a])[-1])[b]
    expected[EOS, PAD] = first[EOS]
    drawn = {pair: 0 for pair in expected}
    for pair in batch.tokens[0]:
        drawn[tuple(int(token) for token in pair)] += 1
    possible = [pair for pair in expected if expected[pair] > 0]
    assert sum(drawn[pair] for pair in possible) == number and abs(sum(expected.values()) - 1) < 1e-9
    assert len(possible) > 4
    common = [pair for pair in possible if expected[pair] * number > 5]
    rare = [pair for pair in possible if pair not in common]
    observed = [drawn[p] for p in common] + ([sum(drawn[p] for p in rare)] if rare else [])
    wanted = [expected[p] * number for p in common] + ([sum(expected[p] for p in rare) * number] if rare else [])
    assert stats.chisquare(observed, wanted, sum_check=False).pvalue > 1e-3


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_logprobs_are_the_scorers(config):
    variables = make(config)
    batch = sample(config=config, samples=6)
    np.testing.assert_array_equal(batch.logprobs, batch.behaviour_logprobs)
    assert len(np.unique(batch.mask.sum(axis=-1))) > 2
    for i, k in itertools.product(range(3), range(6)):
        size = int(batch.mask[i, k].sum())
        _, logprobs = full_forward(config, variables, [*PROMPTS[i], *batch.tokens[i, k, :size]])
        np.testing.assert_allclose(batch.logprobs[i, k, :size], logprobs[len(PROMPTS[i]) :], atol=1e-5, rtol=0)
        assert (batch.logprobs[i, k, size:] == 0).all()


def test_behaviour_logprobs_are_of_the_filtered_distribution():
    variables = make()
    batch = sample(temperature=1.5, top_k=4, top_p=0.9)
    for i, k in itertools.product(range(3), range(3)):
        size = int(batch.mask[i, k].sum())
        drawn = batch.tokens[i, k, :size]
        logits = full_logits(GPT2, variables, [*PROMPTS[i], *drawn])[len(PROMPTS[i]) - 1 : -1]
        behaviour = [np.log(numpy_filter(row, 1.5, 4, 0.9)[token]) for row, token in zip(logits, drawn, strict=True)]
        np.testing.assert_allclose(batch.behaviour_logprobs[i, k, :size], behaviour, atol=1e-4)
        np.testing.assert_allclose(batch.logprobs[i, k, :size], log_softmax(logits)[np.arange(size), drawn], atol=1e-5)


def test_eos_is_in_the_mask_and_padding_follows():
    batch = sample(samples=40, max_tokens=6, eos_ids=(EOS, 9), pad_id=7)
    sizes = batch.mask.sum(axis=-1).astype(int)
    assert batch.ended.any() and not batch.ended.all() and sizes.min() >= 1
    for tokens, mask, ended, size in zip(*(a.reshape(-1, *a.shape[2:]) for a in (*batch[:3], sizes)), strict=True):
        assert mask.tolist() == [1.0] * size + [0.0] * (6 - size)
        assert ended == (tokens[size - 1] in (EOS, 9)) and not set(tokens[: size - 1]) & {EOS, 9}
        assert (tokens[size:] == 7).all() and (ended or size == 6)
    assert (batch.behaviour_logprobs[batch.mask == 0] == 0).all() and (batch.behaviour_logprobs[batch.mask == 1] < 0).all()


def test_greedy_takes_the_likeliest_token():
    variables = make()
    batch = sample(temperature=0, samples=2, eos_ids=())
    for i, prompt in enumerate(PROMPTS):
        sequence = list(prompt)
        for _ in range(8):
            sequence.append(int(full_logits(GPT2, variables, sequence)[-1].argmax()))
        assert batch.tokens[i].tolist() == [sequence[len(prompt) :]] * 2
    assert (batch.behaviour_logprobs == 0).all() and (batch.logprobs < 0).all()
    assert not batch.ended.any() and batch.mask.all()  # no EOS: every response is cut


def test_a_sample_depends_on_neither_neighbours_nor_shapes():
    together = sample()
    for i, prompt in enumerate(PROMPTS):
        alone = sample([prompt], ids=[i])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[i])
        np.testing.assert_allclose(alone.logprobs[0], together.logprobs[i], atol=1e-5)
    reverse = sample(PROMPTS[::-1], ids=[2, 1, 0], length=9, rows=5)
    np.testing.assert_array_equal(reverse.tokens[2::-1], together.tokens)
    more = sample(samples=5, max_tokens=11)
    np.testing.assert_array_equal(np.where(together.mask, more.tokens[:, :3, :8], PAD), together.tokens)
    assert sample(max_tokens=1).tokens.tolist() == together.tokens[:, :, :1].tolist()


def test_keys_prompts_and_samples_have_numbers_of_their_own():
    same = [PROMPTS[1]] * 3
    one, other = sample(same, ids=[4, 5, 4]), sample(same, ids=[4, 5, 4], key=jax.random.key(8))
    rows = [tuple(row) for batch in (one, other) for row in batch.tokens[:2].reshape(6, -1)]
    assert len(set(rows)) == 12
    np.testing.assert_array_equal(one.tokens[0], one.tokens[2])


def test_uniforms_are_uniform():
    many = np.asarray(module._uniforms(KEY, jnp.arange(100), 50, 40), np.float64)
    assert many.min() >= 0 and many.max() < 1 and stats.kstest(many.ravel(), "uniform").pvalue > 1e-3
    for ahead, behind in ((many[1:], many[:-1]), (many[:, 1:], many[:, :-1]), (many[..., 1:], many[..., :-1])):
        assert abs(np.corrcoef(ahead.ravel(), behind.ravel())[0, 1]) < 0.01  # the standard error is 0.0022


@pytest.mark.parametrize("key", [KEY, jax.random.PRNGKey(7)], ids=["typed", "raw"])
def test_uniforms_are_keyed_as_documented(key):
    ours = np.asarray(module._uniforms(key, jnp.asarray([5, 0]), 3, 4))
    for (i, prompt), k, t in itertools.product(enumerate((5, 0)), range(3), range(4)):
        folded = functools.reduce(jax.random.fold_in, (prompt, k, t), KEY)
        assert ours[i, k, t] == (int(jax.random.key_data(folded)[0]) >> 8) / 2**24


def test_padding_prompts_get_nothing():
    batch = sample(rows=5, length=9)
    assert batch.mask[3:].sum() == 0 and not batch.ended[3:].any() and (batch.tokens[3:] == PAD).all()
    assert (batch.logprobs[3:] == 0).all() and batch.mask[:3].sum(axis=-1).min() >= 1


def test_decoding_stops_with_the_last_response(decode_steps):
    longest = int(sample(PROMPTS[:1], samples=2, max_tokens=30, eos_ids=(EOS, 5, 9), rows=2).mask.sum(axis=-1).max())
    assert 1 < longest < 30 and decode_steps() == longest - 1
    sample(eos_ids=tuple(range(11)))
    assert decode_steps() == 0


def test_settings_out_of_range():
    good = dict(samples=1, max_tokens=4, eos_ids=(EOS,), pad_id=PAD)
    for wrong in ({"samples": 0}, {"max_tokens": 0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}):
        with pytest.raises(UserError, match="sampling with samples = "):
            make_sampler(GPT2, **{**good, **wrong})


# ---- many prompts ----


def test_many_prompts_come_back_in_order_with_a_trace_a_bucket():
    traces = []
    plain = make_sampler(GPT2, samples=2, max_tokens=5, eos_ids=(EOS,), pad_id=PAD, with_logprobs=True)

    @jax.jit
    def sampler(variables, prompts, key):
        traces.append(prompts.tokens.shape)
        return plain(variables, prompts, key)

    generator = np.random.default_rng(0)
    prompts = [generator.integers(0, 11, size=generator.integers(1, 17)).astype(np.int32) for _ in range(43)]
    ids = [100 + i for i in range(43)]
    batch = sample_prompts(sampler, make(), prompts, ids, 4, KEY, max_prompt=32, progress="sampling")
    assert batch.tokens.shape == (43, 2, 5) and batch.tokens.flags.writeable and batch.mask.sum(axis=-1).min() >= 1
    assert sorted(traces) == [(4, 8), (4, 16)]
    for i in (0, 7, 42):
        alone = sampler(make(), prompt_batch([prompts[i]], [ids[i]], 16, 4), KEY)
        np.testing.assert_array_equal(batch.tokens[i], alone.tokens[0])
        np.testing.assert_array_equal(batch.ended[i], alone.ended[0])
        np.testing.assert_allclose(batch.logprobs[i], alone.logprobs[0], atol=1e-5)
    sample_prompts(sampler, make(), prompts[::-1], ids[::-1], 4, KEY, max_prompt=32)
    assert len(traces) == 2


def test_a_length_of_few_batches_has_no_shape_of_its_own():
    few = plan_groups([3] * 7 + [12], 2, 16)
    assert [batch.length for batch in few] == [16] * 4 and sorted(sum((batch.members for batch in few), [])) == list(range(8))
    enough = plan_groups([3] * 9 + [12], 2, 16)
    assert [batch.length for batch in enough] == [8] * 4 + [16] and enough[-1].members == [8, 9]


def test_batches_are_put_and_few():
    seen = []

    def echo(variables, prompts, key):
        """"Samples" the prompt's number."""
        tokens = np.broadcast_to(prompts.ids[:, None, None], (4, 2, 3))
        return module.SampleBatch(tokens, tokens > 0, tokens[..., 0] > 0, tokens * 0.5, None)

    prompts = [np.ones(n, np.int32) for n in (9, 2, 3, 17, 4)]
    batch = sample_prompts(echo, None, prompts, [10, 20, 30, 40, 50], 4, KEY, put=lambda b: seen.append(b) or b)
    assert [b.tokens.shape for b in seen] == [(4, 17), (4, 17)] and seen[1].ids.tolist() == [40] + [PADDING_ID] * 3
    assert batch.tokens[:, 1, 2].tolist() == [10, 20, 30, 40, 50] and batch.logprobs is None
    with pytest.raises(ValueError, match="no prompts"):
        sample_prompts(echo, None, [], [], 4, KEY)


def test_samples_become_examples_with_their_own_ids():
    batch = sample()
    examples = examples_of(PROMPTS, batch.tokens, batch.mask, batch.ended)
    assert [e.source for e in examples] == [i for i in range(3) for _ in range(3)]
    for e, tokens, mask, ended in zip(examples, *(a.reshape(9, *a.shape[2:]) for a in batch[:3]), strict=True):
        assert e.response.tolist() == tokens[mask > 0].tolist() and e.ended == ended == (e.response[-1] == EOS)
        assert e.prompt.tolist() == PROMPTS[e.source].tolist()
