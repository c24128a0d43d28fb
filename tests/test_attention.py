"""Attention by blocks of queries against the plain formula, in its values and in both derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irl_jax.models import attention
from irl_jax.models.attention import Scores

B, G, R, E = 2, 2, 3, 8


def plain(scores, q, k, v, segments, window):
    """softmax over all keys, every score computed."""
    T = q.shape[1]
    s = jnp.einsum("bthe,bshe->bhts", q, jnp.repeat(k, R, axis=2)) * scores.scale
    s = scores.cap * jnp.tanh(s / scores.cap) if scores.cap else s
    ahead = np.arange(T)[:, None] - np.arange(T)
    seen = (segments[:, :, None] == segments[:, None]) & (ahead >= 0) & (ahead < (window or T))
    return jnp.einsum("bhts,bshe->bthe", jax.nn.softmax(jnp.where(seen[:, None], s, -jnp.inf)), jnp.repeat(v, R, axis=2))


def arguments(length, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda heads: rng.normal(size=(B, length, heads, E)).astype(np.float32)
    segments = np.ones((B, length), np.int32)
    segments[0, length // 3 :] = 2
    segments[0, length * 4 // 5 :] = 0  # padding
    return draw(G * R), draw(G), draw(G), segments


# one block, two with a short last one, four, and four whose length no block divides
LENGTHS = pytest.mark.parametrize("length", [5, 70, 256, 301])
HOW = pytest.mark.parametrize(("cap", "window"), [(0.0, None), (2.0, None), (0.0, 3), (2.0, 90)])


@LENGTHS
@HOW
def test_blocks_give_the_plain_formula_and_its_gradient(length, cap, window):
    *qkv, segments = arguments(length)
    scores, weights = Scores(0.3, cap), np.random.default_rng(1).normal(size=(B, length, G * R, E)).astype(np.float32)

    def both(attend):
        def total(q, k, v):
            attended = attend(scores, q, k, v, segments, window)
            return jnp.sum(weights * attended), attended

        return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*qkv)

    got, want = both(attention.attend), both(plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), got, want)


@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_the_gradient_has_a_gradient(cap):
    """As the gradient penalty takes it."""
    *qkv, segments = arguments(70)

    def both(attend):
        total = lambda q, k, v: jnp.sum(jnp.sin(attend(Scores(0.3, cap), q, k, v, segments, 20)))
        squares = lambda *qkv: sum(jnp.sum(jnp.square(g)) for g in jax.grad(total, (0, 1, 2))(*qkv))
        return jax.jit(jax.grad(squares, (0, 1, 2)))(*qkv)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), both(attention.attend), both(plain))


def test_a_traced_window_is_the_window():
    *qkv, segments = arguments(150)
    attend = jax.jit(lambda window: attention.attend(Scores(0.3, 0.0), *qkv, segments, window))
    for window in (2, 100, 150):
        np.testing.assert_allclose(attend(window), attention.attend(Scores(0.3, 0.0), *qkv, segments, window), rtol=1e-5, atol=1e-6)


def test_keys_that_no_query_of_a_block_sees_are_not_multiplied():
    """The products' operations: 10 of the 16 squares that four blocks make, and with a window of 64 at most two a block."""
    *qkv, segments = (jnp.asarray(x) for x in arguments(256))

    def elements(window):
        blocks = list(attention._blocks(256, window))
        return sum((q.stop - q.start) * (k.stop - k.start) for q, k in blocks)

    assert elements(None) == 10 * 64 * 64 and elements(64) == 7 * 64 * 64
    attend = lambda window: jax.jit(lambda *a: attention.attend(Scores(0.3, 0.0), *a, window))
    wide, narrow = (attend(window).lower(*qkv, segments).compile().cost_analysis()["flops"] for window in (None, 64))
    assert 0.6 < narrow / wide < 0.8


def test_bfloat16_attends_in_float32():
    *qkv, segments = arguments(256)
    low = [jnp.asarray(x, jnp.bfloat16) for x in qkv]
    got = attention.attend(Scores(0.3, 0.0), *low, segments)
    want = plain(Scores(0.3, 0.0), *(np.asarray(x, np.float32) for x in low), segments, None)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=0.02, atol=0.01)
