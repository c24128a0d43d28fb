"""Converts a checkpoint's tensors to and from our trunk, by its family's table."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from irl_jax.errors import UserError
from irl_jax.models.families import FAMILIES, Tensor, family
from irl_jax.models.transformer import ModelConfig, init_trunk
from irl_jax.types import PyTree


class Piece(NamedTuple):
    """What one leaf takes from one tensor of a checkpoint.

    name: in the checkpoint. layer: the leaf's layer; None if the leaf has no layers. transposed: the tensor is stored [out, in].
    shape: of the piece in the leaf, without the layer axis and the vocabulary's padding. start: where it begins on the tensor's last
    axis (transposed back), since several leaves may lie there side by side.
    """

    name: str
    layer: int | None
    transposed: bool
    shape: tuple[int, ...]
    start: int


class Plan(NamedTuple):
    """How a checkpoint becomes a trunk. pieces: of every leaf, by path. equal: the names of two tensors that must be equal, if any."""

    pieces: dict[str, tuple[Piece, ...]]
    equal: tuple[str, str] | None


def _flat_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every leaf of the trunk, unpadded. Paths of blocks omit "blocks/", their shapes omit the layers."""
    config = dataclasses.replace(config, vocab_multiple=1)
    leaves = _by_path(jax.eval_shape(lambda: init_trunk(jax.random.key(0), config)))
    return {path.removeprefix("blocks/"): leaf.shape[1:] if path.startswith("blocks/") else leaf.shape for path, leaf in leaves.items()}


def import_plan(config: ModelConfig, stored_shapes: Mapping[str, tuple[int, ...]], where: str) -> Plan:
    """Plans where each tensor goes, from names and shapes alone. Each is used exactly once.

    Args:
      config: the architecture.
      stored_shapes: of all tensors in the checkpoint, by name.
      where: the checkpoint's name, for errors.
    Raises: UserError naming missing, unknown or misshapen tensors.
    """
    stored = _stored_names(family(config), stored_shapes)
    shapes = _flat_shapes(config)
    rules = [rule for rule in FAMILIES[family(config)].tensors if rule.leaves[0] in shapes]
    layers = {rule: range(config.num_layers) if "{}" in rule.name else (None,) for rule in rules}
    wanted = {rule.name.format(layer): rule for rule in rules for layer in layers[rule]}
    duplicate = {"lm_head.weight"} if config.tie_embeddings else set()
    _complain("lacks the tensor", wanted.keys() - stored.keys(), where)
    _complain("has the unknown tensor", stored.keys() - wanted.keys() - duplicate, where)
    for name, rule in wanted.items():
        expected = (*shapes[rule.leaves[0]][:-1], sum(shapes[leaf][-1] for leaf in rule.leaves))
        expected = expected[::-1] if rule.transposed else expected
        if stored_shapes[stored[name]] != expected:
            raise UserError(f"{where}: tensor {name} has shape {stored_shapes[stored[name]]}, the config asks for {expected}")
    pieces = {}
    for rule in rules:
        start = 0
        for leaf in rule.leaves:
            path = f"blocks/{leaf}" if "{}" in rule.name else leaf
            pieces[path] = tuple(
                Piece(stored[rule.name.format(layer)], layer, rule.transposed, shapes[leaf], start) for layer in layers[rule])
            start += shapes[leaf][-1]
    twice = duplicate & stored.keys()
    return Plan(pieces, (pieces["embed/tokens"][0].name, stored[twice.pop()]) if twice else None)


def _stored_names(kind: str, names: Iterable[str]) -> dict[str, str]:
    """Full name -> name in the checkpoint, without buffers."""
    buffers, prefix = FAMILIES[kind].buffers, FAMILIES[kind].prefix
    names = [name for name in names if not name.endswith(buffers)]
    prefix = "" if any(name.startswith(prefix) for name in names) else prefix
    return {name if name == "lm_head.weight" else prefix + name: name for name in names}


def _complain(verb: str, names: set[str], where: str) -> None:
    if names:
        listed = sorted(names)
        more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
        raise UserError(f"{where}: {verb}{'s' if len(listed) > 1 else ''} {', '.join(listed[:3])}{more}")


class Stored(NamedTuple):
    """One tensor of a checkpoint, not made yet.

    leaves: the trunk's leaves in it, as in `families.Tensor`. shape: as stored. read: makes it, numpy float32.
    """

    name: str
    leaves: tuple[str, ...]
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def stored_tensors(config: ModelConfig, variables: PyTree) -> Iterator[Stored]:
    """Yields the checkpoint's tensors with the adapter merged and the vocabulary unpadded. Only one at a time needs to be on the host.

    Args:
      config: the architecture, with the adapter's scale.
      variables: {"params": trunk, "adapter": adapter}, blocks stacked; "adapter" is optional.
    """
    leaves, adapter, shapes = _by_path(variables["params"]), _by_path(variables.get("adapter") or {}), _flat_shapes(config)

    def part(path: str, layer: int | None) -> np.ndarray:
        value = np.asarray(leaves[path] if layer is None else leaves[path][layer], np.float32)
        value = value[tuple(map(slice, shapes[path.removeprefix("blocks/")]))]  # without the vocabulary's padding
        beside = path.removesuffix("kernel")
        if f"{beside}a" not in adapter:
            return value
        a, b = (np.asarray(adapter[beside + factor][layer], np.float32) for factor in "ab")
        return value + np.float32(config.adapter_scale) * (a @ b)

    def read(rule: Tensor, paths: list[str], layer: int | None) -> np.ndarray:
        joined = np.concatenate([part(path, layer) for path in paths], axis=-1)
        return np.ascontiguousarray(joined.T if rule.transposed else joined)

    for rule in FAMILIES[family(config)].tensors:
        layered = "{}" in rule.name
        paths = [f"blocks/{leaf}" if layered else leaf for leaf in rule.leaves]
        if paths[0] not in leaves:
            continue
        shape = (*shapes[rule.leaves[0]][:-1], sum(shapes[leaf][-1] for leaf in rule.leaves))
        for layer in range(config.num_layers) if layered else (None,):
            yield Stored(rule.name.format(layer), rule.leaves, shape[::-1] if rule.transposed else shape,
                         functools.partial(read, rule, paths, layer))


def _by_path(tree: PyTree) -> dict[str, Any]:
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def export_tensors(config: ModelConfig, trunk: PyTree) -> dict[str, np.ndarray]:
    """The checkpoint's tensors of a trunk: the inverse of an import."""
    return {stored.name: stored.read() for stored in stored_tensors(config, {"params": trunk})}
