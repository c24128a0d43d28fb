"""LoRA adapters on every kernel of the blocks (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from irl_jax.models.layers import merged_kernel
from irl_jax.models.transformer import ModelConfig, init_trunk
from irl_jax.types import Array, PyTree


def init_adapter(rng, config: ModelConfig, rank: int) -> PyTree:
    """Initialises an adapter that leaves the model unchanged: y = x W + adapter_scale (x A) B, with A normal and B zero.

    Args:
      rng: a PRNG key.
      config: the architecture.
      rank: columns of A and rows of B, at least 1.
    Returns: {"blocks": {...: {"a": [L, in, rank], "b": [L, rank, out]}}} for q, k, v, o and the MLP kernels.
      A ~ N(0, 1 / in), so x A has unit variance for normalised x.
    """
    if rank < 1:
        raise ValueError(f"an adapter needs rank >= 1, not {rank}")
    blocks = jax.eval_shape(lambda: init_trunk(jax.random.key(0), config))["blocks"]
    kernels = [(group, name) for group in ("attention", "mlp") for name in sorted(blocks[group]) if "kernel" in blocks[group][name]]
    adapter: dict[str, dict[str, dict[str, Array]]] = {"attention": {}, "mlp": {}}
    for key, (group, name) in zip(jax.random.split(rng, len(kernels)), kernels, strict=True):
        layers, fan_in, fan_out = blocks[group][name]["kernel"].shape
        a = jax.random.normal(key, (layers, fan_in, rank), jnp.float32) * fan_in**-0.5
        adapter[group][name] = {"a": a, "b": jnp.zeros((layers, rank, fan_out), jnp.float32)}
    return {"blocks": adapter}


def merge(config: ModelConfig, variables: PyTree) -> PyTree:
    """Merges the adapter into the trunk's kernels: W + adapter_scale A B, the same function without the extra products.

    Args:
      config: the architecture, with the adapter's scale.
      variables: {"params": trunk, "adapter": adapter}, blocks stacked; without "adapter", returns the trunk unchanged.
    Returns: a trunk that shares the leaves without an adapter with the old one.
    """
    trunk, adapter = variables["params"], variables.get("adapter")
    if adapter is None:
        return trunk
    blocks = dict(trunk["blocks"])
    for group, kernels in adapter["blocks"].items():
        blocks[group] = dict(blocks[group])
        for name, leaves in kernels.items():
            kernel = blocks[group][name]["kernel"]
            merged = merged_kernel(config.adapter_scale, kernel, leaves["a"], leaves["b"])
            blocks[group][name] = {**blocks[group][name], "kernel": merged}
    return {**trunk, "blocks": blocks}
