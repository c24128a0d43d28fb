"""The vocabulary's loss by chunks: values and gradients of the plain formula, and what of it ever exists."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irl_jax.models import adapters, logprobs, transformer
from tests.test_transformer import GEMMA3, GPT2, noisy_trunk, rows

CONFIGS = pytest.mark.parametrize(
    "config", [dataclasses.replace(c, num_layers=1, windowed=c.windowed[:1]) for c in (GPT2, GEMMA3)], ids=["tied", "untied-capped"]
)
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1] * 9, [1] * 6 + [2] * 3], np.int32)


def plain(config, trunk, tokens, positions, segments):
    """(log-probs, entropies) from all logits at once, differentiated by jax alone."""
    hidden = transformer.hidden_states(config, {"params": trunk}, tokens, positions, segments)
    table = jax.nn.log_softmax(transformer.vocab_logits(config, {"params": trunk}, hidden)[:, :-1])
    picked = jnp.take_along_axis(table, tokens[:, 1:, None], axis=-1)[..., 0]
    counts = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return tuple(jnp.pad(jnp.where(counts, x, 0.0), ((0, 0), (1, 0))) for x in (picked, -jnp.sum(jnp.exp(table) * table, axis=-1)))


def close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, want)


def arguments(config):
    tokens, positions, _ = rows(config, SEGMENTS.shape)
    return noisy_trunk(config), (tokens, positions, SEGMENTS), np.random.default_rng(6).normal(size=(2, *SEGMENTS.shape)).astype(np.float32)


@CONFIGS
@pytest.mark.parametrize("chunk", [0, 3, 7, 12])
def test_chunks_give_the_plain_formula_and_its_gradient(config, chunk):
    trunk, batch, weights = arguments(config)
    chunked = dataclasses.replace(config, loss_chunk=chunk)

    def both(one):
        total = lambda trunk: sum(jnp.sum(w * x) for w, x in zip(weights, one(trunk), strict=True))
        return jax.jit(lambda trunk: (one(trunk), jax.grad(total)(trunk)))(trunk)

    got = both(lambda trunk: logprobs.token_logprobs(chunked, {"params": trunk}, *batch, with_entropy=True))
    close(got, both(lambda trunk: plain(config, trunk, *batch)))


@CONFIGS
@pytest.mark.parametrize("chunk", [0, 7])
def test_the_weighted_sum_gives_the_plain_formula_and_its_gradient(config, chunk):
    trunk, batch, weights = arguments(config)
    chunked = dataclasses.replace(config, loss_chunk=chunk)
    both = lambda one: jax.jit(jax.value_and_grad(lambda trunk: 3.0 * one(trunk)))(trunk)
    got = both(lambda trunk: logprobs.weighted_logprob(chunked, {"params": trunk}, *batch, weights[0]))
    close(got, both(lambda trunk: jnp.sum(weights[0] * plain(config, trunk, *batch)[0])))


def one_loss(name, config, batch):
    if name == "weighted":
        return lambda variables: logprobs.weighted_logprob(config, variables, *batch, jnp.ones(batch[0].shape))
    return lambda variables: jnp.sum(jnp.square(logprobs.token_logprobs(config, variables, *batch)))


@pytest.mark.parametrize("name", ["weighted", "tokens"])
def test_no_array_is_as_large_as_all_logits(name):
    """Of the forward or the backward pass: 2 rows of 16 tokens are 1009 * 32 logits, two columns a chunk 1009 * 4."""
    config = dataclasses.replace(GPT2, loss_chunk=4, vocab_size=1009, num_layers=1)
    trunk = jax.eval_shape(lambda: transformer.init_trunk(jax.random.key(0), config))

    def largest(jaxpr):
        sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars if 1009 in v.aval.shape and v.aval.ndim > 2]
        return max([0, *sizes, *(largest(sub) for eqn in jaxpr.eqns for sub in jax.core.jaxprs_in_params(eqn.params))])

    loss = one_loss(name, config, rows(config, (2, 16)))
    assert largest(jax.make_jaxpr(jax.grad(lambda trunk: loss({"params": trunk})))(trunk).jaxpr) == 4 * 1009


def test_small_vocabularies_have_one_chunk_and_large_ones_a_thousand_tokens():
    columns = lambda vocabulary: logprobs._columns(dataclasses.replace(GPT2, vocab_size=vocabulary), 16)
    assert columns(512) == (1 << 22) // 512 // 16 and columns(50257) == columns(256000) == 64


@pytest.mark.parametrize("chunk", [0, 32])
@pytest.mark.parametrize("name", ["weighted", "tokens"])
def test_a_frozen_unembedding_costs_no_gradient(name, chunk):
    """Products with the unembedding in the compiled program: logits, the states' gradient, and where it trains its own; only chunks
    whose weights are not known in advance are computed twice."""
    config = dataclasses.replace(GPT2, loss_chunk=chunk, vocab_size=20011, num_layers=1, adapter_scale=1.0)
    trunk = jax.eval_shape(lambda: transformer.init_trunk(jax.random.key(0), config))
    adapter = jax.eval_shape(lambda: adapters.init_adapter(jax.random.key(0), config, 2))
    loss = one_loss(name, config, rows(config, (4, 16)))

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(whole, trunk, adapter):
        if whole:
            return jax.grad(lambda trunk: loss({"params": trunk}))(trunk)
        return jax.grad(lambda adapter: loss({"params": trunk, "adapter": adapter}))(adapter)

    def products(whole):
        text = gradient.lower(whole, trunk, adapter).compile().as_text()
        shapes = dict(re.findall(r"%([\w.-]+) = (\w+\[[\d,]*\])", text))
        dots = re.findall(r"= (\w+\[[\d,]*\])\S* dot\(([^)]*)\)", text)
        return sum("20011" in "".join([out, *(shapes[name] for name in re.findall(r"%([\w.-]+)", names))]) for out, names in dots)

    assert (products(False), products(True)) == (2, 4 if name == "tokens" and chunk else 3)
