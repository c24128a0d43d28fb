"""The mesh, the one rule table from leaf paths to mesh axes, and `compile_step`.

Axes of the mesh: `data` (replicas of the parameters), `fsdp` (parameters sharded, gathered layer by layer) and `tensor` (matrix products
split). The rows of a batch are split over `data` and `fsdp` together. One device is a mesh of 1 x 1 x 1, so the same code runs on one and
on many.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from irl_jax.errors import UserError
from irl_jax.types import PyTree

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")

# Path pattern -> mesh axis of each dimension; dimensions beyond the tuple are whole. Patterns match the path's end, so they cover the same
# leaf in the optimizer's state, a role's trunk and the shared trunk. Every leaf matches exactly one rule. The first axis of a block's
# leaves is the layer. "tensor?" splits a dimension if it divides, else leaves it whole: vocabularies have odd sizes (50257) unless
# model.vocab_multiple pads them, and there may be fewer key/value heads than devices.
_IN, _OUT = r"(?:attention/[qkv]|mlp/(?:up|gate))", r"(?:attention/o|mlp/down)"  # into the split width, and out of it
RULES: tuple[tuple[str, tuple], ...] = (
    (r"embed/tokens", ("tensor?", "fsdp")),
    (r"embed/positions", (None, "fsdp")),
    (r"unembed/kernel", ("fsdp", "tensor?")),
    (rf"blocks/{_IN}/kernel", (None, "fsdp", "tensor")),
    (rf"blocks/{_IN}/bias", (None, "tensor")),
    (rf"blocks/{_IN}/a", (None, "fsdp", None)),
    (rf"blocks/{_IN}/b", (None, None, "tensor")),
    (rf"blocks/{_OUT}/kernel", (None, "tensor", "fsdp")),
    (rf"blocks/{_OUT}/bias", ()),
    (rf"blocks/{_OUT}/a", (None, "tensor", None)),
    (rf"blocks/{_OUT}/b", (None, None, "fsdp")),
    (r"(?:(?:attention|mlp)(?:_post)?|final)_norm/(?:scale|bias)", ()),
    (r"attention/[qk]_norm/scale", ()),
    (r"head/(?:hidden/)?(?:kernel|bias)", ()),
    (r"length/(?:slope|centre)", ()),
    (r"(?:step|count)", ()),  # the optimizer's counters
    (r"control/(?:beta|rewards/(?:mean|m2)|signs/smoothed_\w+)", ()),
    (r"(?<!embed/)(?:tokens|positions)", (ROWS,)),  # from here on: batches, samples and caches, by rows
    (r"(?:segments|mask|last|label|weight|advantage|returns|reward|lengths|ids|ended|(?:reference_|behaviour_)?logprobs)", (ROWS,)),
    (r"prompt_cache/\d+/[kv]", (ROWS, "tensor?")),
    (r"response_cache/\d+/[kv]", (ROWS, None, "tensor?")),
)


def make_mesh(mesh_config, devices=None) -> Mesh:
    """The device mesh.

    Args:
        mesh_config: `data`, `fsdp` and `tensor`, devices along each axis; data = -1 takes the rest.
        devices: all devices by default.

    Returns:
        A mesh with axes ("data", "fsdp", "tensor"), all of them automatic (the compiler propagates shardings).

    Raises:
        UserError: the axes do not multiply to the number of devices, or fsdp and tensor do not fit into one slice of several.
    """
    devices = jax.devices() if devices is None else list(devices)
    data, fsdp, tensor = mesh_config.data, mesh_config.fsdp, mesh_config.tensor
    for axis, size in (("data", data), ("fsdp", fsdp), ("tensor", tensor)):
        if size < 1 and not (axis == "data" and size == -1):
            raise UserError(f"config mesh.{axis} = {size}: must be at least 1" + (", or -1" if axis == "data" else ""))
    count, model = len(devices), fsdp * tensor
    if count % model:
        raise UserError(
            f"config mesh.fsdp * mesh.tensor = {fsdp} * {tensor} does not divide the {count} devices: "
            f"choose --config.mesh.fsdp and --config.mesh.tensor so that their product does"
        )
    if data == -1:
        data = count // model
    elif data * model != count:
        raise UserError(
            f"config mesh.data * mesh.fsdp * mesh.tensor = {data} * {fsdp} * {tensor}, but there are {count} devices: "
            "set --config.mesh.data=-1 to use them all"
        )
    slices = _by_slice(devices)
    if len(slices) == 1:
        return jax.make_mesh((data, fsdp, tensor), AXES, (AxisType.Auto,) * 3, devices=devices)
    if data % len(slices):
        raise UserError(
            f"config mesh.fsdp * mesh.tensor = {fsdp} * {tensor} must fit into each of the {len(slices)} slices of {count // len(slices)} "
            "devices, so that only mesh.data crosses them: lower --config.mesh.fsdp"
        )
    parts = [mesh_utils.create_device_mesh((data // len(slices), fsdp, tensor), one, allow_split_physical_axes=True) for one in slices]
    return Mesh(np.concatenate(parts), AXES, axis_types=(AxisType.Auto,) * 3)


def one_device() -> Mesh:
    """The mesh of only the first local device."""
    return jax.make_mesh((1, 1, 1), AXES, (AxisType.Auto,) * 3, devices=jax.local_devices()[:1])


def _by_slice(devices) -> list[list]:
    """Devices grouped by slice. Only `data` crosses the slow network between slices, since it sums once per step."""
    slices: dict[int, list] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    return [slices[index] for index in sorted(slices)]


def spec_for(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How the rule table splits one leaf.

    Args:
        path: names joined by "/", such as "trunk/blocks/attention/q/kernel". shape: the leaf's. mesh: from `make_mesh`.

    Returns:
        The PartitionSpec. Optional dimensions ("tensor?") that do not divide stay whole.

    Raises:
        UserError: a dimension does not divide over its mesh axis; names the flag to change.
        ValueError: no rule, or several, match the path, or the leaf has too few dimensions for its rule.
    """
    if re.search(r"(?:^|/)members/", path):  # an ensemble has one more leading axis, which stays whole
        inner = spec_for(re.sub(r"(^|/)members/", r"\1", path), shape[1:], mesh)
        return PartitionSpec(None, *inner)
    matches = [axes for pattern, axes in RULES if _compiled(pattern).search(path)]
    if len(matches) != 1:
        raise ValueError(f"{len(matches)} sharding rules match the leaf {path!r} {shape}; exactly one must")
    (axes,) = matches
    if len(axes) > len(shape):
        raise ValueError(f"the leaf {path!r} {shape} has fewer dimensions than its sharding rule {axes}")
    return PartitionSpec(*(_axis(path, shape, dimension, axis, mesh) for dimension, axis in enumerate(axes)))


def _axis(path, shape, dimension, axis, mesh):
    """The mesh axis of one dimension; None if an optional one does not divide."""
    if axis is None:
        return None
    names = (axis.rstrip("?"),) if isinstance(axis, str) else axis
    ways = int(np.prod([mesh.shape[name] for name in names]))
    if shape[dimension] % ways == 0:
        return names[0] if len(names) == 1 else names
    if isinstance(axis, str) and axis.endswith("?"):
        return None
    flags = " * ".join(f"mesh.{name}" for name in names)
    if names == ROWS:
        raise UserError(
            f"{shape[dimension]} rows ({path}) do not divide over config {flags} = {ways} devices: "
            f"choose a batch size that is a multiple of {ways}"
        )
    raise UserError(
        f"config {flags} = {ways} does not divide dimension {dimension} of {path} {tuple(shape)}: "
        f"set --config.{flags} to a divisor of {shape[dimension]}"
    )


@functools.cache
def _compiled(pattern: str) -> re.Pattern:
    return re.compile(rf"(?:^|/){pattern}$")


def tree_shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """The NamedSharding of every leaf (arrays or ShapeDtypeStructs) of a trunk, leaves, state, batch or cache.

    Raises: as `spec_for`.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, spec_for(jax.tree_util.keystr(path, simple=True, separator="/"), np.shape(leaf), mesh)
        ),
        tree,
    )


def like(make, mesh: Mesh) -> PyTree:
    """What make() would return, as ShapeDtypeStructs with the rule table's shardings. Raises: as `spec_for`."""
    shapes = jax.eval_shape(make)
    return jax.tree.map(lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, tree_shardings(shapes, mesh))


def make(make_tree, mesh: Mesh) -> PyTree:
    """What make_tree() returns, computed as one program. Each device computes its own part by the rule table. Raises: as `spec_for`."""
    return jax.jit(make_tree, out_shardings=tree_shardings(jax.eval_shape(make_tree), mesh))()


def place(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts a tree of arrays on the mesh by the rule table. Raises: as `spec_for`.

    With many hosts, each gives the same host arrays, and its own devices take their parts.
    """
    shardings = tree_shardings(tree, mesh)
    return jax.tree.map(_put_part, tree, shardings) if mesh.is_multi_process else jax.device_put(tree, shardings)


def _put_part(leaf, sharding: NamedSharding):
    """Places one leaf of which this host has only some parts."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])


def fetch(tree: PyTree) -> PyTree:
    """Every array in full, as numpy, on every host."""

    def one(leaf):
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(one, tree)


def put_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Places a batch with its rows split over `data` and `fsdp`; see `pad_rows` for rows that do not divide.

    Raises:
        UserError: the rows do not divide.
    """
    return place(batch, mesh)


def put_rows(make, shape: PyTree, mesh: Mesh) -> PyTree:
    """A batch placed as by `put_batch`, of which each host makes only the rows that its own devices hold.

    Args:
        make: make(start, stop) -> rows start to stop - 1, as numpy arrays; called once per range.
        shape: the whole batch, as ShapeDtypeStructs whose first axis is the rows.

    Raises:
        UserError: the rows do not divide.
    """
    made = functools.cache(lambda start, stop: jax.tree.leaves(make(start, stop)))

    def one(number, leaf, sharding):
        def part_of(part):
            start, stop, _ = part[0].indices(leaf.shape[0])
            return made(start, stop)[number][:, *part[1:]]

        return jax.make_array_from_callback(leaf.shape, sharding, part_of)

    leaves, structure = jax.tree.flatten(shape)
    shardings = jax.tree.leaves(tree_shardings(shape, mesh))
    return jax.tree.unflatten(structure, [one(number, *two) for number, two in enumerate(zip(leaves, shardings, strict=True))])


def row_multiple(mesh: Mesh) -> int:
    """Number of devices that a batch's rows are split over: the multiple that `put_batch` needs."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def pad_rows(batch: PyTree, multiple: int, paired: bool = False) -> PyTree:
    """Pads a host batch at the end with rows that count nothing, to a multiple of `multiple`.

    Args:
        batch: a batch whose arrays all begin with the rows: TokenBatch, RewardBatch and the like. Padding is zeros: segment, mask and
            weight 0. For PromptBatch see `data.batching.prompt_batch`.
        multiple: the rows become a multiple of it, such as `row_multiple(mesh)`.
        paired: whether the batch holds pairs, half a batch apart. Each half is then padded to a multiple of `multiple` rows, so the pairs
            stay pairs.

    Returns:
        The batch, numpy.
    """
    if paired:
        rows = len(batch.weight)
        halves = [jax.tree.map(lambda leaf, part=part: np.asarray(leaf)[part], batch) for part in _halves(rows)]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *(pad_rows(half, multiple) for half in halves))
    def pad(leaf):
        leaf = np.asarray(leaf)
        return np.pad(leaf, [(0, -len(leaf) % multiple)] + [(0, 0)] * (leaf.ndim - 1))

    return jax.tree.map(pad, batch)


def _halves(rows):
    return slice(0, rows // 2), slice(rows // 2, rows)


def _placed(tree, mesh: Mesh):
    abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))
    return tree if abstract else place(tree, mesh)


class CompiledStep:
    """What `compile_step` returns. traces: number of times the function was traced: once per shape."""

    def __init__(self, fn: Callable[..., Any], mesh: Mesh, donate: tuple[int, ...]):
        self.traces = 0
        self._fn, self._mesh, self._donate = fn, mesh, donate
        self._jitted: Any = None  # made with the first call's arguments, whose shardings it keeps

    def __call__(self, *args: Any) -> Any:
        args = self._prepare(args)
        return self._jitted(*args)

    def lower(self, *args: Any) -> Any:
        """`jax.jit`'s lower; also takes ShapeDtypeStructs with shardings."""
        args = self._prepare(args)
        return self._jitted.lower(*args)

    def _prepare(self, args: tuple) -> tuple:
        """The arguments. Before the first call, those that are donated are placed."""
        if self._jitted is not None:
            return args

        def counted(*args: Any) -> Any:
            self.traces += 1
            with jax.sharding.use_abstract_mesh(self._mesh.abstract_mesh):  # for the model's activations, see models.layers.by_rows
                return self._fn(*args)

        if not self._donate:
            self._jitted = jax.jit(counted)
            return args
        shardings = {index: tree_shardings(args[index], self._mesh) for index in self._donate}
        replicated = NamedSharding(self._mesh, PartitionSpec())
        self._jitted = jax.jit(counted, donate_argnums=self._donate, out_shardings=(*shardings.values(), replicated))
        return tuple(_placed(arg, self._mesh) if i in shardings else arg for i, arg in enumerate(args))


def compile_step(fn: Callable[..., Any], mesh: Mesh, *, donate: tuple[int, ...] = ()) -> CompiledStep:
    """`jax.jit` of a step that keeps shardings and counts traces.

    With `donate`, fn returns a tuple: the donated arguments' successors, in their order, and one more tree: (state, metrics) for
    donate=(0,). The successors get exactly the rule table's shardings, like their predecessors from `place`. So a step's output feeds the
    next without a copy or another compilation. The last tree is replicated. Donated arguments are placed before the first call if they were
    not yet. Without `donate` the compiler chooses the outputs' shardings.

    Args:
        fn: positional arguments, arrays in, arrays out. mesh: from `make_mesh`. donate: arguments whose buffers are reused.

    Returns:
        The compiled function.
    """
    return CompiledStep(fn, mesh, donate)
