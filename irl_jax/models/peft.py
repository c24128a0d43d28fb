"""LoRA adapters with the names and shapes of Hugging Face's peft."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import block_diag

from irl_jax.models.families import FAMILIES, family
from irl_jax.models.transformer import ModelConfig
from irl_jax.types import PyTree

PREFIX = "base_model.model."  # peft puts this before the base model's names


class Lora(NamedTuple):
    """An adapter in peft's format.

    tensors: "base_model.model.MODULE.lora_A.weight" [rank, in] and "....lora_B.weight" [out, rank], float32.
    settings: the fields of adapter_config.json that follow from them.
    """

    tensors: dict[str, np.ndarray]
    settings: dict


def lora(config: ModelConfig, adapter: PyTree) -> Lora:
    """Converts an adapter to peft's format.

    A checkpoint may hold n of our kernels in one tensor, as GPT-2's c_attn holds q, k and v. One A and B of rank n r then replace
    the n pairs of rank r: A stacks theirs, B has theirs on its diagonal, and alpha n over rank n r is the same scale.

    Args:
      config: the architecture, with the adapter's scale.
      adapter: from `adapters.init_adapter`, trained.
    """
    tensors: dict[str, np.ndarray] = {}
    modules: dict[str, bool] = {}  # whether each is stored [out, in]
    fused: dict[str, int] = {}  # of how many of our kernels, if several
    rules = [rule for rule in FAMILIES[family(config)].tensors if "{}" in rule.name and rule.leaves[0].endswith("/kernel")]
    for rule in rules:
        parts = [_factors(adapter, leaf.removesuffix("/kernel")) for leaf in rule.leaves]
        if parts[0] is None:  # of another variant
            continue
        rank = parts[0][0].shape[-1]
        within = rule.name.partition("{}.")[2].removesuffix(".weight")  # "attn.c_attn"
        modules[within] = rule.transposed
        if len(parts) > 1:
            fused[within] = len(parts)
        for layer in range(config.num_layers):
            a = np.concatenate([np.asarray(a[layer], np.float32).T for a, _ in parts])
            b = np.asarray(block_diag(*(np.asarray(b[layer], np.float32).T for _, b in parts)))
            name = PREFIX + rule.name.format(layer).removesuffix(".weight")
            tensors |= {f"{name}.lora_A.weight": np.ascontiguousarray(a), f"{name}.lora_B.weight": np.ascontiguousarray(b)}
    alpha = _number(config.adapter_scale * rank)
    return Lora(tensors, {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted({name.rpartition(".")[2] for name in modules}),
        "fan_in_fan_out": not any(modules.values()),  # kernels stored [in, out], as in GPT-2's Conv1D
        "rank_pattern": {name: count * rank for name, count in fused.items()},
        "alpha_pattern": {name: _number(count * alpha) for name, count in fused.items()},
    })  # fmt: skip


def _factors(adapter: PyTree, path: str):
    """(a, b) of one kernel, [L, in, r] and [L, r, out]; None if the adapter has none for it."""
    tree = adapter["blocks"]
    for key in path.split("/"):
        if key not in tree:
            return None
        tree = tree[key]
    return tree["a"], tree["b"]


def _number(value: float) -> int | float:
    """A whole number as an int: peft's config declares alpha as one."""
    nearest = round(value)
    return nearest if abs(value - nearest) < 1e-9 * max(1.0, abs(value)) else value
