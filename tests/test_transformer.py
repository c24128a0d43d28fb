"""The decoder against a plain numpy one, its own cached decoding, and the ways of computing that must not matter."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irl_jax.errors import UserError
from irl_jax.models import adapters, logprobs, transformer
from irl_jax.models.transformer import ModelConfig

GPT2 = ModelConfig(
    vocab_size=23, num_layers=2, width=16, num_heads=4, num_kv_heads=4, head_dim=4, mlp_width=32, max_positions=24
)  # fmt: skip
LLAMA = ModelConfig(
    vocab_size=23, num_layers=2, width=16, num_heads=4, num_kv_heads=2, head_dim=6, mlp_width=20, max_positions=24,
    positions="rotary", norm="rms", gated_mlp=True, activation="silu", qkv_bias=False, output_bias=False, mlp_bias=False, tie_embeddings=False,
)  # fmt: skip
GEMMA3 = dataclasses.replace(  # everything that later families add: two rotary bases, a window shorter than the rows, caps, more norms
    LLAMA, num_layers=3, windowed=(True, False, True), window=4, local_rope_theta=50.0, attention_softcap=2.0, logit_softcap=3.0,
    query_scalar=5.0, qk_norm=True, post_norms=True, unit_offset=True, embed_scale=True,
)  # fmt: skip
BOTH = pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
ALL = pytest.mark.parametrize("config", [GPT2, LLAMA, GEMMA3], ids=["gpt2", "llama", "gemma3"])


# Compiled whole: operation by operation the same tests take many times longer.
init_trunk = jax.jit(transformer.init_trunk, static_argnums=1)
token_logprobs = jax.jit(logprobs.token_logprobs, static_argnums=0)
hidden_states = jax.jit(transformer.hidden_states, static_argnums=0)
prefill = jax.jit(transformer.prefill, static_argnums=0)
decode = jax.jit(transformer.decode, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def all_logits(config, variables, *batch):
    return transformer.vocab_logits(config, variables, transformer.hidden_states(config, variables, *batch))


@functools.cache
def noisy_trunk(config):
    """A trunk whose biases, scales and kernels are all far from their initial values."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.2 * rng.normal(size=leaf.shape).astype(np.float32),
        init_trunk(jax.random.key(0), config),
    )


def noisy_adapter(config, rank):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: adapters.init_adapter(jax.random.key(0), config, rank))
    return jax.tree.map(lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(np.float32), shapes)


def rows(config, shape, seed=2):
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, shape)
    return tokens, np.broadcast_to(np.arange(shape[1]), shape), np.ones(shape, np.int32)


def reference_logits(config, trunk, tokens):
    """One sequence, float64, written down from the papers' formulas: [T] -> [T, V]."""
    trunk = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), trunk)
    length = len(tokens)

    def norm(x, p):
        if config.norm == "layer":
            return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.norm_eps) * p["scale"] + p["bias"]
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * p["scale"]

    def dense(x, p):
        return x @ p["kernel"] + p.get("bias", 0.0)

    def activation(x):
        if config.activation == "silu":
            return x / (1 + np.exp(-x))
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def rotate(vector, position):
        half = config.head_dim // 2
        theta = position * config.rope_theta ** (-2 * np.arange(half) / config.head_dim)
        pairs = (vector[:half] + 1j * vector[half:]) * np.exp(1j * theta)
        return np.concatenate([pairs.real, pairs.imag])

    x = trunk["embed"]["tokens"][tokens]
    if config.positions == "learned":
        x = x + trunk["embed"]["positions"][:length]
    for layer in range(config.num_layers):
        p = jax.tree.map(lambda leaf, layer=layer: leaf[layer], trunk["blocks"])
        normed = norm(x, p["attention_norm"])
        q, k, v = (dense(normed, p["attention"][n]).reshape(length, -1, config.head_dim) for n in "qkv")
        attended = np.zeros((length, config.num_heads, config.head_dim))
        for head in range(config.num_heads):
            shared = head // (config.num_heads // config.num_kv_heads)
            for t in range(length):
                if config.positions == "rotary":
                    scores = np.array([rotate(q[t, head], t) @ rotate(k[s, shared], s) for s in range(t + 1)])
                else:
                    scores = k[: t + 1, shared] @ q[t, head]
                weights = np.exp(scores / np.sqrt(config.head_dim))
                attended[t, head] = weights / weights.sum() @ v[: t + 1, shared]
        x = x + dense(attended.reshape(length, -1), p["attention"]["o"])
        normed = norm(x, p["mlp_norm"])
        if config.gated_mlp:
            x = x + dense(activation(dense(normed, p["mlp"]["gate"])) * dense(normed, p["mlp"]["up"]), p["mlp"]["down"])
        else:
            x = x + dense(activation(dense(normed, p["mlp"]["up"])), p["mlp"]["down"])
    unembed = trunk["embed"]["tokens"].T if config.tie_embeddings else trunk["unembed"]["kernel"]
    return norm(x, trunk["final_norm"]) @ unembed


@BOTH
def test_full_forward_equals_plain_numpy(config):
    trunk = noisy_trunk(config)
    batch = rows(config, (2, 11))
    expected = np.stack([reference_logits(config, trunk, np.asarray(row)) for row in batch[0]])
    np.testing.assert_allclose(all_logits(config, {"params": trunk}, *batch), expected, atol=2e-5 * np.abs(expected).max())


@ALL
def test_packed_sequences_equal_the_same_alone(config):
    variables = {"params": noisy_trunk(config)}
    first, second = rows(config, (1, 5), 3), rows(config, (1, 7), 4)
    tokens, positions = (np.concatenate([a, b, np.zeros((1, 3), int)], 1) for a, b in zip(first[:2], second[:2], strict=True))
    segments = np.array([[1] * 5 + [2] * 7 + [0] * 3])
    packed = token_logprobs(config, variables, tokens, positions, segments)
    np.testing.assert_allclose(packed[:, :5], token_logprobs(config, variables, *first), atol=1e-5)
    np.testing.assert_allclose(packed[:, 5:12], token_logprobs(config, variables, *second), atol=1e-5)
    np.testing.assert_array_equal(packed[0, [0, 5, 12, 13, 14]], 0.0)


@BOTH
def test_token_logprobs_are_the_log_softmax(config):
    variables, batch = {"params": noisy_trunk(config)}, rows(config, (2, 9))
    logits = np.asarray(all_logits(config, variables, *batch), np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = np.take_along_axis(logprobs[:, :-1], np.asarray(batch[0])[:, 1:, None], -1)[..., 0]
    got = token_logprobs(config, variables, *batch)
    np.testing.assert_allclose(got[:, 1:], expected, atol=1e-5)
    np.testing.assert_array_equal(got[:, 0], 0.0)


@ALL
def test_padding_changes_nothing_and_gives_no_nan(config):
    variables = {"params": noisy_trunk(config)}
    tokens, positions, segments = rows(config, (2, 8))
    padded = tuple(np.pad(a, ((0, 1), (0, 4))) for a in (tokens, positions, segments))  # a whole row of padding too

    @jax.jit
    @jax.value_and_grad
    def loss(variables, batch):
        return logprobs.token_logprobs(config, variables, *batch).sum()

    alone, gradient = loss(variables, (tokens, positions, segments))
    with_padding, gradient_padded = loss(variables, padded)
    np.testing.assert_allclose(alone, with_padding, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4), gradient, gradient_padded)


@functools.partial(jax.jit, static_argnums=0)
def _loss_and_gradient(config, variables):
    def loss(variables):
        return (logprobs.token_logprobs(config, variables, *rows(config, (3, 11))) * jnp.arange(11)).mean()

    return jax.value_and_grad(loss)(variables)


@ALL
@pytest.mark.parametrize(
    "change",
    [
        {"scan_layers": True},
        {"remat": "full"},
        {"scan_layers": True, "remat": "dots", "loss_chunk": 1},
        {"loss_chunk": 9},
    ],
    ids=str,
)
def test_ways_of_computing_change_neither_value_nor_gradient(config, change):
    config = dataclasses.replace(config, adapter_scale=0.5)
    variables = {"params": noisy_trunk(config), "adapter": noisy_adapter(config, 2)}
    value, gradient = _loss_and_gradient(config, variables)
    other, other_gradient = _loss_and_gradient(dataclasses.replace(config, **change), variables)
    np.testing.assert_allclose(value, other, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), gradient, other_gradient)


@ALL
@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "unstacked"])
def test_cached_decode_equals_full_forward(config, stacked):
    """Prompts of different lengths, K = 3 samples of different tokens, adapters on."""
    config = dataclasses.replace(config, adapter_scale=0.5)
    variables = {"params": noisy_trunk(config), "adapter": noisy_adapter(config, 2)}
    lengths, samples, steps, width = np.array([6, 1, 4]), 3, 5, 6
    prompts = np.array(rows(config, (3, width))[0])
    responses = rows(config, (3, samples * steps), 8)[0].reshape(3, samples, steps)
    used = variables if stacked else transformer.unstack(config, variables)
    first, prompt_cache = prefill(config, used, prompts, lengths)
    cache = transformer.init_response_cache(config, 3, samples, steps)
    logits = []
    for t in range(steps):
        step, cache = decode(config, used, responses[:, :, t], np.full((3, samples), t), t, lengths, prompt_cache, cache)
        logits.append(step)
    for b, length in enumerate(lengths):
        for k in range(samples):
            row = np.zeros((1, width + steps), int)
            row[0, : length + steps] = np.concatenate([prompts[b, :length], responses[b, k]])
            segments = (np.arange(width + steps) < length + steps).astype(int)[None]
            full = all_logits(config, variables, row, np.arange(width + steps)[None], segments)[0, : length + steps]
            scale = 1e-5 * float(jnp.abs(full).max())
            np.testing.assert_allclose(first[b], full[length - 1], atol=scale)
            np.testing.assert_allclose(np.stack([step[b, k] for step in logits]), full[length:], atol=scale)


@ALL
def test_prompts_in_a_batch_equal_the_same_alone(config):
    variables = {"params": noisy_trunk(config)}
    lengths, prompts = np.array([5, 2]), np.array(rows(config, (2, 5))[0])
    together, cache = prefill(config, variables, prompts, lengths)
    for b, length in enumerate(lengths):
        alone, own = prefill(config, variables, prompts[b : b + 1, :length], lengths[b : b + 1])
        np.testing.assert_allclose(together[b], alone[0], atol=1e-5)
        np.testing.assert_allclose(cache[-1].k[b, :, :length], own[-1].k[0], atol=1e-5)


def test_the_prompt_cache_has_no_sample_axis():
    """Key/value heads, prompt tokens, head width: K does not appear, nor does the number of query heads."""
    variables = {"params": noisy_trunk(LLAMA)}
    _, cache = jax.eval_shape(functools.partial(transformer.prefill, LLAMA), variables, np.zeros((2, 7), int), np.array([7, 3]))
    assert {leaf.shape for leaf in jax.tree.leaves(cache)} == {(2, LLAMA.num_kv_heads, 7, LLAMA.head_dim)}


def test_a_later_token_changes_no_earlier_state():
    tokens, positions, segments = rows(GPT2, (1, 9))
    variables = {"params": noisy_trunk(GPT2)}
    before = hidden_states(GPT2, variables, tokens, positions, segments)
    changed = np.where(np.arange(9) == 6, (tokens + 1) % GPT2.vocab_size, tokens)
    after = hidden_states(GPT2, variables, changed, positions, segments)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (np.abs(before - after)[:, 6:].max(-1) > 1e-3).all()


@BOTH
def test_initial_scales(config):
    config = dataclasses.replace(config, width=64, head_dim=16, mlp_width=256, vocab_size=500)
    trunk = init_trunk(jax.random.key(0), config)
    std = 0.02 * (768 / 64) ** 0.5
    np.testing.assert_allclose(np.std(trunk["embed"]["tokens"]), std, rtol=0.05)
    np.testing.assert_allclose(np.std(trunk["blocks"]["mlp"]["up"]["kernel"]), std, rtol=0.05)
    np.testing.assert_allclose(np.std(trunk["blocks"]["mlp"]["down"]["kernel"]), std / 4**0.5, rtol=0.05)
    np.testing.assert_allclose(np.std(trunk["blocks"]["attention"]["o"]["kernel"]), std / 4**0.5, rtol=0.05)
    assert not np.array_equal(*trunk["blocks"]["mlp"]["up"]["kernel"][:2])  # layers are drawn apart


def test_bfloat16_computes_close_and_keeps_float32_logits():
    variables, batch = {"params": noisy_trunk(GPT2)}, rows(GPT2, (2, 9))
    low = dataclasses.replace(GPT2, dtype="bfloat16")
    hidden = hidden_states(low, variables, *batch)
    logits = transformer.vocab_logits(low, variables, hidden)
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    exact = all_logits(GPT2, variables, *batch)
    assert float(jnp.abs(logits - exact).max()) < 0.05 * float(jnp.abs(exact).max())


@pytest.mark.parametrize("change", [{"remat": "ful"}, {"dtype": "float16"}, {"loss_chunk": -1}], ids=str)
def test_bad_settings_are_the_users_mistake(change):
    with pytest.raises(UserError, match=f"config.model.{next(iter(change))}"):
        dataclasses.replace(GPT2, **change)


@BOTH
@pytest.mark.parametrize("chunk", [0, 5])
def test_entropies_are_those_of_the_distributions_drawn_from(config, chunk):
    trunk, batch = noisy_trunk(config), rows(config, (2, 9))
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1] * 9], np.int32)
    batch = (batch[0], batch[1], segments)
    both = jax.jit(functools.partial(logprobs.token_logprobs, with_entropy=True), static_argnums=0)
    picked, entropies = both(dataclasses.replace(config, loss_chunk=chunk), {"params": trunk}, *batch)
    np.testing.assert_allclose(picked, token_logprobs(config, {"params": trunk}, *batch), rtol=1e-5, atol=1e-6)
    p = np.asarray(jax.nn.softmax(all_logits(config, {"params": trunk}, *batch)), np.float64)
    want = np.pad(-(p * np.log(p)).sum(-1)[:, :-1], ((0, 0), (1, 0)))
    counts = np.pad((segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0), ((0, 0), (1, 0)))
    np.testing.assert_allclose(entropies, want * counts, rtol=1e-4, atol=1e-5)
    assert not np.any(np.asarray(picked)[~counts]) and np.ptp(want[counts]) > 0.01


@BOTH
def test_entropies_in_chunks_have_the_same_gradient(config):
    batch, weights = rows(config, (3, 9)), np.random.default_rng(6).normal(size=(2, 3, 9))

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(config, trunk):
        both = lambda trunk: jnp.stack(logprobs.token_logprobs(config, {"params": trunk}, *batch, with_entropy=True))
        return jax.grad(lambda trunk: jnp.sum(weights * both(trunk)))(trunk)

    config = dataclasses.replace(config, num_layers=1)
    whole, chunked = (gradient(dataclasses.replace(config, loss_chunk=chunk), noisy_trunk(config)) for chunk in (0, 7))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4), whole, chunked)


@BOTH
def test_a_shift_moves_the_input_embeddings(config):
    """Shifting the table of tokens by d is a shift of every input by d; a zero shift is none. (Unembedding is not looked at.)"""
    trunk, batch = noisy_trunk(config), rows(config, (2, 5))
    step = 0.3 * np.random.default_rng(3).normal(size=config.width).astype(np.float32)
    moved = {**trunk, "embed": {**trunk["embed"], "tokens": trunk["embed"]["tokens"] + step}}
    shifted = hidden_states(config, {"params": trunk}, *batch, np.broadcast_to(step, (2, 5, config.width)))
    np.testing.assert_allclose(shifted, hidden_states(config, {"params": moved}, *batch), atol=1e-5)
    np.testing.assert_array_equal(hidden_states(config, {"params": trunk}, *batch, np.zeros((2, 5, config.width), np.float32)),
                                  hidden_states(config, {"params": trunk}, *batch))  # fmt: skip


@BOTH
@pytest.mark.parametrize("change", [{}, {"scan_layers": True, "remat": "full"}, {"remat": "dots"}], ids=str)
def test_the_squared_gradient_by_the_embeddings_can_be_differentiated(config, change):
    """The second derivative, along a direction in all parameters, against differences of the first."""
    config = dataclasses.replace(config, adapter_scale=0.5, **change)
    variables = {"params": noisy_trunk(config), "adapter": noisy_adapter(config, 2)}
    batch, probe = rows(config, (2, 6)), np.random.default_rng(4).normal(size=config.width).astype(np.float32)

    @jax.jit
    def squared(variables):
        total = lambda shift: jnp.sum(transformer.hidden_states(config, variables, *batch, shift)[:, -1] @ probe)
        return jnp.sum(jnp.square(jax.grad(total)(jnp.zeros((2, 6, config.width)))))

    direction = jax.tree.map(lambda x: np.random.default_rng(5).normal(size=x.shape).astype(np.float32), variables)
    slope = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (jax.jit(jax.grad(squared))(variables), direction)), strict=True))
    at = lambda step: float(squared(jax.tree.map(lambda x, d: x + step * d, variables, direction)))
    small = 1e-3  # Richardson: the error of the plain difference would be seen
    difference = (8 * (at(small) - at(-small)) - (at(2 * small) - at(-2 * small))) / (12 * small)
    np.testing.assert_allclose(slope, difference, rtol=1e-2)
    assert abs(difference) > 0.1
