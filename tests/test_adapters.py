"""LoRA: the base at the start, the merged trunk afterwards."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irl_jax.models import adapters, transformer
from irl_jax.models.layers import adapted
from irl_jax.models.transformer import ModelConfig

GPT2 = ModelConfig(
    vocab_size=19, num_layers=2, width=12, num_heads=3, num_kv_heads=3, head_dim=4, mlp_width=20, max_positions=16,
    adapter_scale=1.5,
)  # fmt: skip
LLAMA = dataclasses.replace(
    GPT2, num_kv_heads=1, positions="rotary", norm="rms", gated_mlp=True, activation="silu", qkv_bias=False, output_bias=False, mlp_bias=False
)
GEMMA3 = dataclasses.replace(LLAMA, qk_norm=True, post_norms=True, windowed=(True, False), window=3)  # norms beside the kernels
ALL = pytest.mark.parametrize("config", [GPT2, LLAMA, GEMMA3], ids=["gpt2", "llama", "gemma3"])


init_trunk = jax.jit(transformer.init_trunk, static_argnums=1)
init_adapter = jax.jit(adapters.init_adapter, static_argnums=(1, 2))


@functools.partial(jax.jit, static_argnums=0)
def states(config, variables):
    tokens = np.random.default_rng(3).integers(0, config.vocab_size, (2, 7))
    return transformer.hidden_states(config, variables, tokens, np.broadcast_to(np.arange(7), (2, 7)), np.ones((2, 7), int))


@ALL
def test_a_fresh_adapter_is_the_base_exactly(config):
    trunk = init_trunk(jax.random.key(0), config)
    adapter = init_adapter(jax.random.key(1), config, 3)
    np.testing.assert_array_equal(states(config, {"params": trunk}), states(config, {"params": trunk, "adapter": adapter}))
    merged = adapters.merge(config, {"params": trunk, "adapter": adapter})
    jax.tree.map(np.testing.assert_array_equal, merged, trunk)


@ALL
def test_every_kernel_of_the_blocks_has_one(config):
    blocks = init_trunk(jax.random.key(0), config)["blocks"]
    adapter = init_adapter(jax.random.key(1), config, 3)["blocks"]
    names = {"attention": set("qkvo"), "mlp": {"up", "down"} | ({"gate"} if config.gated_mlp else set())}
    assert {group: set(kernels) for group, kernels in adapter.items()} == names
    for group, kernels in adapter.items():
        for name, leaves in kernels.items():
            layers, fan_in, fan_out = blocks[group][name]["kernel"].shape
            assert leaves["a"].shape == (layers, fan_in, 3) and leaves["b"].shape == (layers, 3, fan_out)
            assert np.abs(leaves["a"]).min() > 0 and not leaves["b"].any()
    assert not np.array_equal(adapter["attention"]["q"]["a"], adapter["attention"]["k"]["a"])


@ALL
def test_merged_trunk_is_the_same_function(config):
    trunk = init_trunk(jax.random.key(0), config)
    adapter = jax.tree.map(lambda a: a + 0.1, init_adapter(jax.random.key(1), config, 3))
    variables = {"params": trunk, "adapter": adapter}
    expected = states(config, variables)
    assert np.abs(expected - states(config, {"params": trunk})).max() > 0.1
    np.testing.assert_allclose(states(config, {"params": adapters.merge(config, variables)}), expected, atol=1e-5)


def test_the_update_is_scale_times_a_times_b():
    trunk = init_trunk(jax.random.key(0), GPT2)
    adapter = jax.tree.map(lambda a: a + 0.1, init_adapter(jax.random.key(1), GPT2, 3))
    merged = adapters.merge(GPT2, {"params": trunk, "adapter": adapter})
    for layer in range(GPT2.num_layers):
        a, b = (np.asarray(adapter["blocks"]["mlp"]["up"][n][layer], np.float64) for n in "ab")
        expected = np.asarray(trunk["blocks"]["mlp"]["up"]["kernel"][layer], np.float64) + 1.5 * a @ b
        np.testing.assert_allclose(merged["blocks"]["mlp"]["up"]["kernel"][layer], expected, atol=1e-6)


def test_at_the_start_only_b_has_a_gradient():
    trunk = init_trunk(jax.random.key(0), GPT2)
    adapter = init_adapter(jax.random.key(1), GPT2, 3)
    loss = jax.grad(lambda adapter: (states(GPT2, {"params": trunk, "adapter": adapter})[:, 2] ** 3).sum())
    gradient = jax.jit(loss)(adapter)
    for leaves in [kernel for group in gradient["blocks"].values() for kernel in group.values()]:
        assert not leaves["a"].any() and np.abs(leaves["b"]).max() > 0


def test_without_an_adapter_merge_gives_the_trunk_and_rank_zero_is_refused():
    trunk = init_trunk(jax.random.key(0), GPT2)
    assert adapters.merge(GPT2, {"params": trunk}) is trunk
    with pytest.raises(ValueError, match="rank"):
        adapters.init_adapter(jax.random.key(1), GPT2, 0)


def test_the_merged_product_is_that_of_the_parts_and_so_are_its_gradients():
    """x (W + s A B) in float32 against x W + s (x A) B in float64, the kernel's gradient among them."""
    rng = np.random.default_rng(0)
    x, kernel, a, b, weights = (rng.normal(size=shape) for shape in ((7, 12), (12, 10), (12, 3), (3, 10), (7, 10)))
    config = ModelConfig(vocab_size=5, num_layers=1, width=12, num_heads=1, num_kv_heads=1, head_dim=12, mlp_width=10, max_positions=4,
                         adapter_scale=0.7)
    total = lambda *parts: jnp.sum(weights.astype(np.float32) * adapted(config, *parts))
    got = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3)))(*(jnp.asarray(part, jnp.float32) for part in (x, kernel, a, b)))
    want = np.sum(weights * (x @ kernel + 0.7 * x @ a @ b))
    through = weights @ b.T * 0.7
    want = want, (weights @ kernel.T + through @ a.T, x.T @ weights, x.T @ through, 0.7 * (x @ a).T @ weights)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5), got, want)


def test_a_frozen_kernel_gets_no_gradient_as_large_as_itself():
    """In the compiled program: of the products' outputs none has the kernel's shape but the sum W + s A B's own."""
    config = ModelConfig(vocab_size=5, num_layers=1, width=12, num_heads=1, num_kv_heads=1, head_dim=12, mlp_width=10, max_positions=4)
    parts = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 37), (37, 41), (37, 3), (3, 41))]
    dots = lambda which: sum("f32[37,41]" in line and " dot(" in line for line in jax.jit(
        jax.grad(lambda *p: jnp.sum(jnp.sin(adapted(config, *p))), which)).lower(*parts).compile().as_text().splitlines())
    assert dots((1, 2, 3)) == dots((0, 2, 3)) + 1 == 2
