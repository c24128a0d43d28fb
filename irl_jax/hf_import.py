"""Reads the weights of Hugging Face folders, block by block, straight into the sharded arrays of the mesh."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from irl_jax import sharding
from irl_jax.errors import UserError
from irl_jax.hf_export import INDEX, WEIGHTS
from irl_jax.models import tensors
from irl_jax.models.tensors import Piece
from irl_jax.models.transformer import ModelConfig, init_trunk
from irl_jax.types import PyTree

DTYPES = ("F32", "F16", "BF16")  # as safetensors names them
BLOCK = 2**22  # bytes of a tensor's rows read at a time

Box = tuple[tuple[int, int], ...]  # (start, stop) of every axis


class StoredTensor(NamedTuple):
    """A tensor in a file, not read yet. dtype: its safetensors name."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self, box: Box | None = None, kind: np.dtype | None = None) -> np.ndarray:
        """The part in the box, or all of it, in its own memory: the file is closed again and none of its pages stays mapped.

        Args:
          kind: the dtype to return; None is the stored one.
        Raises: UserError if the file is broken, or holds numbers there that are not finite in that dtype.
        """
        with _opened(self.file) as file:
            values = file.get_slice(self.name)[tuple(slice(*bounds) for bounds in box or [(0, size) for size in self.shape])]
        with np.errstate(over="ignore"):
            values = values.astype(kind or values.dtype, copy=False)
        if not np.isfinite(values.astype(np.float32, copy=False)).all():
            within = f" in {kind}" if kind else ""
            raise UserError(f"{self.file}: tensor {self.name} holds NaN or infinities{within}, with which every result would be NaN; give "
                            "whole weights")
        return values


def stored_in(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a folder by name, from one file or from the shards that the index names. Reads only headers.

    Raises: UserError if files are missing or broken, or if a tensor is in two.
    """
    stored = {}
    for path in weight_files(folder):
        with _opened(path) as file:
            for name in file.keys():
                if name in stored:
                    raise UserError(f"{path}: tensor {name} stands in another shard too")
                header = file.get_slice(name)
                stored[name] = StoredTensor(path, name, tuple(header.get_shape()), str(header.get_dtype()))
    return stored


def load_trunk(
    config: ModelConfig, stored: Mapping[str, StoredTensor], where: str, mesh: jax.sharding.Mesh, param_dtype: str = "float32"
) -> PyTree:
    """A trunk on the mesh, split by the rule table, from a folder's tensors, each used exactly once.

    Checks names, shapes and dtypes before placing anything. Then makes each leaf's arrays on the devices and fills them in place, layer by
    layer and block by block. So besides what the devices hold, the host holds at most a few blocks of BLOCK bytes (or a few rows, if one is
    larger). With many hosts each reads the rows that its own devices need.

    Args:
      config: the architecture. With vocab_multiple the vocabulary's padding is zero.
      stored: from `stored_in`.
      where: the checkpoint's name, for errors.
      param_dtype: of the arrays, "float32" or "bfloat16".
    Raises: UserError naming missing, unknown or misshapen tensors, dtypes beyond DTYPES, or numbers that are not finite; or if the mesh
      doesn't divide a leaf.
    """
    plan = _plan(config, stored, where)
    kind = np.dtype(jnp.dtype(param_dtype))
    likes = sharding.like(lambda: jax.tree.map(lambda leaf: leaf.astype(kind), init_trunk(jax.random.key(0), config)), mesh)
    if plan.equal and not _equal(stored[plan.equal[0]], stored[plan.equal[1]], kind):
        raise UserError(f"{where}: tie_word_embeddings is set, but {plan.equal[1]} differs from the token embeddings")
    return jax.tree_util.tree_map_with_path(
        lambda path, like: _filled(like, plan.pieces[jax.tree_util.keystr(path, simple=True, separator="/")], stored), likes)


def check(config: ModelConfig, stored: Mapping[str, StoredTensor], where: str) -> None:
    """Refuses tensors that `load_trunk` would refuse, block by block. Keeps nothing, and doesn't compare tied embeddings.

    Raises: UserError, as there.
    """
    pieces = [piece for pieces in _plan(config, stored, where).pieces.values() for piece in pieces]
    for tensor in (stored[name] for name in dict.fromkeys(piece.name for piece in pieces)):
        for box in _blocks(tensor, [_whole(tensor)]):
            tensor.read(box)


def _plan(config: ModelConfig, stored: Mapping[str, StoredTensor], where: str) -> tensors.Plan:
    """Which tensors fill which leaves. Checks names, shapes and dtypes."""
    plan = tensors.import_plan(config, {name: tensor.shape for name, tensor in stored.items()}, where)
    for piece in (piece for pieces in plan.pieces.values() for piece in pieces):
        if stored[piece.name].dtype not in DTYPES:
            raise UserError(f"{where}: tensor {piece.name} is of dtype {stored[piece.name].dtype}, only {', '.join(DTYPES)} are read")
    return plan


def _whole(tensor: StoredTensor) -> Box:
    return tuple((0, size) for size in tensor.shape)


def _equal(one: StoredTensor, other: StoredTensor, kind: np.dtype) -> bool:
    """Whether two tensors hold the same numbers in dtype `kind`."""
    return one.shape == other.shape and all(
        np.array_equal(one.read(box).astype(kind), other.read(box).astype(kind)) for box in _blocks(one, [_whole(one)]))


# ---------------------------------------------------------------- one leaf


def _filled(like: jax.ShapeDtypeStruct, pieces: Iterable[Piece], stored: Mapping[str, StoredTensor]) -> jax.Array:
    """The leaf of this shape, dtype and sharding, zero except for the pieces."""
    places: dict[Box, list[jax.Device]] = {}  # part of the leaf -> devices that hold it
    whole: dict[Box, np.ndarray] = {}
    parts: dict[jax.Device, jax.Array] = {}
    for device, index in like.sharding.addressable_devices_indices_map(like.shape).items():
        box = tuple(part.indices(size)[:2] for part, size in zip(index, like.shape, strict=True))
        places.setdefault(box, []).append(device)
    shape = like.sharding.shard_shape(like.shape)
    small = int(np.prod(like.shape, dtype=np.int64)) * 4 <= BLOCK  # filled on the host, which saves a compilation
    if small:
        whole = {box: np.zeros(shape, like.dtype) for box in places}
    else:
        parts = {device: jnp.zeros(shape, like.dtype, device=device) for devices in places.values() for device in devices}
    for piece, box, part, values in _read(pieces, list(places), stored, like.dtype):
        corner = _corner(piece, box, part)
        values = values.reshape((1,) * (len(shape) - values.ndim) + values.shape)
        if small:
            whole[box][tuple(slice(at, at + size) for at, size in zip(corner, values.shape, strict=True))] = values
            continue
        for device in places[box]:
            parts[device] = _write(parts[device], jax.device_put(values, device), np.array(corner, np.int32))
        jax.block_until_ready([parts[device] for device in places[box]])  # or blocks would pile up faster than devices take them
    if small:
        parts = {device: jax.device_put(whole[box], device) for box, devices in places.items() for device in devices}
    return jax.make_array_from_single_device_arrays(like.shape, like.sharding, list(parts.values()))


def _read(
    pieces: Iterable[Piece], boxes: list[Box], stored: Mapping[str, StoredTensor], kind: np.dtype
) -> Iterator[tuple[Piece, Box, Box, np.ndarray]]:
    """Yields (piece, box of the leaf, part of the tensor, its values as laid out in the leaf) for all boxes. Reads each block once."""
    for piece in pieces:
        own = {box: _in_tensor(piece, box) for box in boxes}
        for block in _blocks(stored[piece.name], own.values()):
            values = stored[piece.name].read(block, kind)
            for box, wanted in own.items():
                if not _within(block[0], wanted[0]):
                    continue
                part = (block[0], *wanted[1:])
                value = values[tuple(slice(start - from_, stop - from_) for (start, stop), (from_, _) in zip(part, block, strict=True))]
                yield piece, box, part, np.ascontiguousarray(value.T if piece.transposed else value)


@functools.partial(jax.jit, donate_argnums=0)
def _write(whole, part, at):
    """Writes `part` into `whole` at the corner `at`, in the same memory."""
    return lax.dynamic_update_slice(whole, part, tuple(at))


def _blocks(tensor: StoredTensor, wanted: Iterable[Box]) -> Iterator[Box]:
    """Blocks of whole rows, at most BLOCK bytes each, that together cover the wanted boxes. No box's row edge lies inside a block.

    A block holds only the columns that are wanted. Its bytes count all columns, because the pages of the others are mapped too.
    """
    wanted = [box for box in wanted if all(start < stop for start, stop in box)]
    if not wanted:
        return
    columns = [(min(start for start, _ in axis), max(stop for _, stop in axis)) for axis in zip(*(box[1:] for box in wanted), strict=True)]
    step = max(1, BLOCK // (4 * int(np.prod(tensor.shape[1:], dtype=np.int64))))
    edges = sorted({edge for box in wanted for edge in box[0]})
    for start, stop in zip(edges, edges[1:], strict=False):
        if any(_within((start, stop), box[0]) for box in wanted):
            yield from (((row, min(row + step, stop)), *columns) for row in range(start, stop, step))


def _within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _in_tensor(piece: Piece, box: Box) -> Box:
    """The part of the tensor in a box of the leaf: without layers and padding, shifted, and transposed if the tensor is."""
    part = [(start, min(stop, size)) for (start, stop), size in zip(box[piece.layer is not None :], piece.shape, strict=True)]
    part[-1] = (part[-1][0] + piece.start, part[-1][1] + piece.start)
    return tuple(part[::-1] if piece.transposed else part)


def _corner(piece: Piece, box: Box, part: Box) -> tuple[int, ...]:
    """Where a part of the tensor begins in the array that holds this box of the leaf."""
    corner = [start for start, _ in (part[::-1] if piece.transposed else part)]
    corner[-1] -= piece.start
    if piece.layer is not None:
        corner.insert(0, piece.layer)
    return tuple(at - start for at, (start, _) in zip(corner, box, strict=True))


# ---------------------------------------------------------------- files


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder. Raises: UserError if there are none."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder}: has neither {WEIGHTS} nor {INDEX}; other formats must be converted to safetensors first")
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{folder / INDEX}: has no weight_map")
    names = sorted(set(map(str, shards.values())))
    outside = [name for name in names if Path(name).name != name or "\0" in name]
    if outside:
        raise UserError(f"{folder / INDEX}: weight_map names {outside[0]!r}, which is no file of this folder")
    return [folder / name for name in names]


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    import ml_dtypes  # noqa: F401 (teaches numpy bfloat16)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            yield opened
    except FileNotFoundError as error:
        raise UserError(f"{file}: the index names this shard, but it is not there") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: truncated or not a safetensors file ({one_line(error)}); fetch it again") from error


def read_json(file: Path) -> dict:
    """A JSON object from a model's folder. Raises: UserError if there is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; a model folder needs it") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid JSON ({one_line(error)})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not usable JSON (nested too deeply, or a number of thousands of digits)") from error
    if not isinstance(value, dict):
        raise UserError(f"{file}: must hold a JSON object")
    return value


def one_line(error: Exception | str) -> str:
    """The text of an error, or another text, on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
