"""LoRA: the base at the start, the merged trunk afterwards."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from irl_jax.models import adapters, transformer
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
