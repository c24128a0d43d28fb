"""Scalar heads: zero at their start, and the functions they say they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irl_jax.models import heads
from irl_jax.models.transformer import ModelConfig

MODEL = ModelConfig(vocab_size=5, num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_width=8, max_positions=8)
HIDDEN = jnp.arange(32.0).reshape(2, 16)


@pytest.mark.parametrize("hidden", [0, 64])
def test_a_fresh_head_is_zero_and_can_learn(hidden):
    head = heads.init_head(jax.random.key(0), MODEL, hidden)
    np.testing.assert_array_equal(heads.scalar(head, HIDDEN), [0.0, 0.0])
    gradient = jax.grad(lambda head: heads.scalar(head, HIDDEN).sum())(head)
    assert np.any(gradient["kernel"]) and np.any(gradient["bias"])
    assert head["kernel"].shape == (hidden or 16, 1) and head["bias"].shape == (1,)


def test_a_linear_head_is_affine_and_float32():
    head = {"kernel": jnp.ones((16, 1)), "bias": jnp.array([2.0])}
    got = heads.scalar(head, HIDDEN.astype(jnp.bfloat16))
    np.testing.assert_allclose(got, [122.0, 378.0])
    assert got.dtype == jnp.float32


def test_a_head_with_a_hidden_layer_is_what_numpy_says():
    head = heads.init_head(jax.random.key(0), MODEL, 64)
    np.testing.assert_allclose(np.std(head["hidden"]["kernel"]), 16**-0.5, rtol=0.1)
    assert not np.any(head["hidden"]["bias"])
    head = jax.tree.map(lambda x: np.random.default_rng(1).normal(size=x.shape).astype(np.float32) * 0.3, head)
    hidden = np.random.default_rng(2).normal(size=(3, 4, 16)).astype(np.float32)
    x = hidden.astype(np.float64) @ head["hidden"]["kernel"] + head["hidden"]["bias"]
    gelu = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(heads.scalar(head, hidden), (gelu @ head["kernel"] + head["bias"])[..., 0], rtol=1e-4, atol=1e-5)
