"""Parses the text of an HLO module: computations, their instructions, and what these say."""

from __future__ import annotations

import itertools
import math
import re
from typing import NamedTuple

_WIDTH = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4,
          "f64": 8, "s64": 8, "u64": 8, "c64": 8, "c128": 16}  # fmt: skip
_ARRAY = re.compile(r"\b(pred|bf16|f8\w+|[fsuc]\d+)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_NAME = re.compile(r"%([\w.\-]+)")


class Array(NamedTuple):
    """One array of a type. space: 0 is the device's main memory, 1 and up are its caches and counters."""

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> float:
        """Size without padding."""
        return math.prod(self.dims) * _WIDTH.get(self.dtype, 1)


class Instruction(NamedTuple):
    """One line of a computation. operands: names. text: the line from the operands on."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str
    root: bool


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """({computation: its instructions}, name of the entry) of a module.

    Raises: ValueError if the text has no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, lines = None, None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            lines = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif lines is not None and (found := _INSTRUCTION.match(line)):
            lines.append(_instruction(found))
    if entry is None:
        raise ValueError("the text has no ENTRY computation: not an HLO module")
    return computations, entry


def _instruction(found: re.Match[str]) -> Instruction:
    rest = found[3]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode, _, _ = rest[end:].strip().partition("(")
    text = rest[rest.index(opcode + "(", end) + len(opcode) :]
    close = _closing(text, 0)
    operands = tuple(_NAME.findall(text[: close + 1]))
    return Instruction(found[2], opcode, arrays_of(rest[:end]), operands, text, bool(found[1]))


def _closing(text: str, start: int) -> int:
    """Index at which the bracket opened at `start` closes."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if not depth:
            return index
    return len(text) - 1


def arrays_of(text: str) -> tuple[Array, ...]:
    """The arrays of a type, a tuple's in order."""
    arrays = []
    for dtype, dims, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        arrays.append(Array(dtype, tuple(int(d) for d in dims.split(",") if d), int(space[1]) if space else 0))
    return tuple(arrays)


def largest(text: str, count: int = 1) -> list[Array]:
    """The largest arrays that a program mentions anywhere, largest first."""
    found = {Array(dtype, tuple(int(d) for d in dims.split(",") if d), 0) for dtype, dims, _ in _ARRAY.findall(text)}
    return sorted(found, key=lambda array: -array.bytes)[:count]


def replica_group(text: str) -> list[int]:
    """The first device group of a collective, in any of HLO's three notations; [] if all devices are one group."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return [int(i) for i in listed[1].split(",") if i]
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        dims = [int(d) for d in iota[3].split(",")]
        order = [int(d) for d in iota[4].split(",")] if iota[4] else list(range(len(dims)))
        return _transposed(dims, order)[: int(iota[2])]
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
        sizes = [(name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])]
        split, grouped = [], set()
        for name, size in sizes:
            parts = {(int(p), int(s)) for p, s in re.findall(rf"'{re.escape(name)}':\((\d+)\)(\d+)", mesh[2])}
            if parts:  # part of an axis: (what stands before it) its size
                before, width = min(parts)
                split += [before, width, size // before // width]
                grouped.add(len(split) - 2)
            else:
                split.append(size)
                grouped |= {len(split) - 1} if f"'{name}'" in mesh[2] else set()
        order = [d for d in range(len(split)) if d not in grouped] + sorted(grouped)
        return _transposed(split, order)[: math.prod(split[d] for d in grouped)]
    return []


def _transposed(dims: list[int], order: list[int]) -> list[int]:
    """0, 1, 2, ... laid out in `dims`, read with the axes in `order`."""
    strides = [math.prod(dims[axis + 1 :]) for axis in range(len(dims))]
    return [sum(i * strides[axis] for i, axis in zip(index, order, strict=True)) for index in
            itertools.product(*(range(dims[axis]) for axis in order))]  # fmt: skip


def found(pattern: str, text: str) -> re.Match[str]:
    """The match of what XLA writes in every instruction of a kind. Raises: ValueError if it isn't there."""
    if match := re.search(pattern, text):
        return match
    raise ValueError(f"no {pattern} in {text[:200]}")


def attribute(one: Instruction, key: str) -> str | None:
    """What an instruction says after KEY=, such as the computation it calls."""
    said = re.search(rf"\b{key}=%?([\w.\-]+)", one.text)
    return said[1] if said else None


def called(one: Instruction, key: str) -> str:
    """As `attribute`, which must be there. Raises: ValueError if it isn't."""
    return found(rf"\b{key}=%?([\w.\-]+)", one.text)[1]


def branches(one: Instruction) -> list[str]:
    """The computations of a conditional."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", one.text)
    return _NAME.findall(listed[1]) if listed else [called(one, f"{which}_computation") for which in ("true", "false")]


def element(one: Instruction | None) -> int | None:
    """Which element of a tuple an instruction takes; None if it takes none."""
    index = re.search(r"index=(\d+)", one.text) if one and one.opcode == "get-tuple-element" else None
    return int(index[1]) if index else None


def root(lines: list[Instruction]) -> Instruction:
    """The instruction whose result is the computation's result."""
    return next((one for one in lines if one.root), lines[-1])
