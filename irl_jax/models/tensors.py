"""A checkpoint's tensors to and from our trunk, by the table of its family."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from irl_jax.errors import UserError
from irl_jax.models.families import FAMILIES, Tensor, family
from irl_jax.models.transformer import ModelConfig, init_trunk
from irl_jax.types import PyTree


def _flat_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every leaf of the trunk; the paths of blocks lack "blocks/", their shapes the layers."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(lambda: init_trunk(jax.random.key(0), config)))
    shapes = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
    return {path.removeprefix("blocks/"): shape[1:] if path.startswith("blocks/") else shape for path, shape in shapes.items()}


def import_tensors(
    config: ModelConfig, names: Iterable[str], get: Callable[[str], np.ndarray], where: str, param_dtype: str = "float32"
) -> dict:
    """Turns a checkpoint's tensors into a trunk, using each exactly once and checking its shape.

    Args:
      config: the architecture.
      names: the names of all tensors in the checkpoint.
      get: name -> tensor.
      where: the checkpoint's name, for errors.
      param_dtype: of the arrays, "float32" or "bfloat16".
    Returns: the trunk as numpy arrays.
    Raises: UserError naming missing, unknown or misshapen tensors.
    """
    kind = jnp.dtype(param_dtype)
    stored = _stored_names(family(config), names)
    shapes = _flat_shapes(config)
    rules = [rule for rule in FAMILIES[family(config)].tensors if rule.leaves[0] in shapes]
    layers = {rule: range(config.num_layers) if "{}" in rule.name else (None,) for rule in rules}
    wanted = {rule.name.format(layer) for rule in rules for layer in layers[rule]}
    duplicate = {"lm_head.weight"} if config.tie_embeddings else set()
    _complain("lacks the tensor", wanted - set(stored), where)
    _complain("has the unknown tensor", set(stored) - wanted - duplicate, where)
    trunk = {}
    for rule in rules:
        parts = [_split(get(stored[name]), rule, shapes, name, where, kind) for name in map(rule.name.format, layers[rule])]
        for leaf, *arrays in zip(rule.leaves, *parts, strict=True):
            if "{}" in rule.name:
                _put(trunk, f"blocks/{leaf}", np.stack(arrays))
            else:
                _put(trunk, leaf, arrays[0])
    for name in duplicate & set(stored):
        if not np.array_equal(get(stored[name]).astype(kind), trunk["embed"]["tokens"]):
            raise UserError(f"{where}: tie_word_embeddings is set, but {name} differs from the token embeddings")
    return trunk


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


def _split(tensor: np.ndarray, rule: Tensor, shapes: dict, name: str, where: str, kind) -> list[np.ndarray]:
    """One tensor cut into its leaves, as contiguous arrays."""
    widths = [shapes[leaf][-1] for leaf in rule.leaves]
    expected = (*shapes[rule.leaves[0]][:-1], sum(widths))
    expected = expected[::-1] if rule.transposed else expected
    if tensor.shape != expected:
        raise UserError(f"{where}: tensor {name} has shape {tensor.shape}, the config asks for {expected}")
    tensor = (tensor.T if rule.transposed else tensor).astype(kind)
    return [np.ascontiguousarray(part) for part in np.split(tensor, np.cumsum(widths)[:-1], axis=-1)]


def _put(tree: dict, path: str, value: np.ndarray) -> None:
    *parents, last = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


class Stored(NamedTuple):
    """One tensor of a checkpoint, not made yet.

    leaves: the trunk's leaves in it, as in `families.Tensor`. shape: as it is stored. read: makes it, numpy float32.
    """

    name: str
    leaves: tuple[str, ...]
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def stored_tensors(config: ModelConfig, variables: PyTree) -> Iterator[Stored]:
    """The checkpoint's tensors one by one, an adapter merged into them, so that no more of a model than one of them need be on the host.

    Args:
      config: the architecture, with the adapter's scale.
      variables: {"params": trunk, "adapter": adapter}, blocks stacked; "adapter" may be left out.
    """
    leaves, adapter = _by_path(variables["params"]), _by_path(variables.get("adapter") or {})

    def part(path, layer):
        value = np.asarray(leaves[path] if layer is None else leaves[path][layer], np.float32)
        factors = [adapter.get(path.removesuffix("kernel") + factor) for factor in "ab"]
        if factors[0] is None:
            return value
        a, b = (np.asarray(factor[layer], np.float32) for factor in factors)
        return value + np.float32(config.adapter_scale) * (a @ b)

    def read(rule, paths, layer):
        joined = np.concatenate([part(path, layer) for path in paths], axis=-1)
        return np.ascontiguousarray(joined.T if rule.transposed else joined)

    for rule in FAMILIES[family(config)].tensors:
        layered = "{}" in rule.name
        paths = [f"blocks/{leaf}" if layered else leaf for leaf in rule.leaves]
        if paths[0] not in leaves:
            continue
        shape = (*leaves[paths[0]].shape[layered:-1], sum(leaves[path].shape[-1] for path in paths))
        for layer in range(config.num_layers) if layered else (None,):
            yield Stored(rule.name.format(layer), rule.leaves, shape[::-1] if rule.transposed else shape,
                         functools.partial(read, rule, paths, layer))


def _by_path(tree: PyTree) -> dict[str, Any]:
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def export_tensors(config: ModelConfig, trunk: PyTree) -> dict[str, np.ndarray]:
    """The checkpoint's tensors of a trunk: the inverse of `import_tensors`."""
    return {stored.name: stored.read() for stored in stored_tensors(config, {"params": trunk})}
