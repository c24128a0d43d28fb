"""What a compiled program does, read from its HLO text: floating-point operations, bytes over the network and to memory.

XLA's own `cost_analysis` counts the body of a loop once. Here every loop counts as often as it runs, so a scan over layers costs all its
layers. All figures are for one device, because the text of a partitioned module is one device's program.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from irl_jax import hlo_text
from irl_jax.hlo_text import Array, Instruction

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_FREE = {"async-update", "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id",
         "custom-call", "iota", "opt-barrier", "domain"}  # fmt: skip
_FUSED = {"fusion", "async-start"}
_PASSES = {"custom-call", "parameter", "get-tuple-element", "tuple"}
_SLICES = {"dynamic-slice", "slice", "gather"}
Kind = tuple[str, bool]  # a collective, from COLLECTIVES, and whether it crosses slices


class Cost(NamedTuple):
    """Cost of one run of a program, on one device.

    flops: floating-point operations of products (dots and convolutions; a fused multiply-add counts 2). memory: bytes read from and written
    to main memory, if every operation outside loops and fusions reads its operands once and writes its results once. network: {kind: bytes
    that the device sends}.
    """

    flops: float = 0.0
    memory: float = 0.0
    network: dict[Kind, float] = {}

    def add(self, other: Cost, times: float = 1.0) -> Cost:
        """This cost plus `times` the other."""
        network = dict(self.network)
        for key, value in other.network.items():
            network[key] = network.get(key, 0.0) + times * value
        return Cost(self.flops + times * other.flops, self.memory + times * other.memory, network)


class Program:
    """A parsed module.

    Args:
        text: `compiled.as_text()`, in HLO's syntax. dynamic_trips: assumed trip count of a loop without a constant bound.
        slice_devices: devices per slice, to tell which collectives cross slices; 0 is one slice.
    """

    def __init__(self, text: str, dynamic_trips: float = 1.0, slice_devices: int = 0):
        self.computations, self.entry = hlo_text.parse(text)
        self.symbols = {name: {one.name: one for one in lines} for name, lines in self.computations.items()}
        self.dynamic_trips, self.slice_devices = dynamic_trips, slice_devices
        self._costs: dict[str, Cost] = {}

    def cost(self, computation: str | None = None) -> Cost:
        """The cost of one run of a computation (the entry by default), with everything it calls."""
        name = computation or self.entry
        if name not in self._costs:
            total, sent = self._own(name)
            for kind, size, memory in sent.values():
                total = total.add(Cost(memory=memory, network={kind: size}))
            self._costs[name] = total
        return self._costs[name]

    def _own(self, name: str) -> tuple[Cost, dict[str, tuple[Kind, float, float]]]:
        """(cost without this computation's collectives, {chain or name: (kind, bytes sent, bytes of memory)}).

        A collective that runs beside other work is split over several fusions (its start, middle and end), which share a chain. Outside
        fusions each collective counts on its own: if the layers are not in a loop, those of all layers have one channel.
        """
        total = Cost()
        sent: dict[str, tuple[Kind, float, float]] = {}
        for one in self.computations[name]:
            kind = one.opcode.removesuffix("-start")
            if one.opcode == "while":
                total = total.add(self.cost(hlo_text.called(one, "body")), self.trips(name, one))
            elif one.opcode == "conditional":
                total = total.add(max(map(self.cost, hlo_text.branches(one)), key=lambda c: (c.flops, c.memory)))
            elif one.opcode == "call":
                total = total.add(self.cost(hlo_text.called(one, "to_apply")))
            elif one.opcode in _FUSED and (called := hlo_text.attribute(one, "calls")):
                inner, sends = self._own(called)
                total = total.add(inner._replace(memory=0.0))
                if called.startswith("all-reduce-scatter"):  # one network operation, written as two
                    sends = {f"{one.name}/{key}": (("reduce-scatter", far), size / 2, moved)
                             for key, ((_, far), size, moved) in sends.items()}
                sent |= sends
            elif kind in COLLECTIVES and not one.opcode.endswith("-done"):
                sent[_chain(one) or f"{name}/{one.name}"] = (*self._sent(name, one, kind), self._through(name, one))
                continue
            elif one.opcode == "send" and "_xla_megascale_transfer_type" in one.text:
                size = sum(array.bytes for array in self._arrays(name, one.operands[0]))
                sent[one.name] = (*between_slices(one.text, size), 0.0)
            elif one.opcode in ("dot", "convolution"):
                total = total.add(Cost(flops=product_flops(one, [self._arrays(name, o)[0] for o in one.operands[:2]])))
            total = total.add(Cost(memory=self._memory(name, one)))
        return total, sent

    def _arrays(self, computation: str, operand: str) -> tuple[Array, ...]:
        found = self.symbols[computation].get(operand)
        return found.arrays if found else ()

    # ------------------------------------------------------------------------------------------------------- loops
    def trips(self, computation: str, loop: Instruction) -> float:
        """How often a while loop runs: from XLA's note, else from its counter's start, step and bound, else `dynamic_trips`."""
        noted = re.search(r'known_trip_count[\\"]*:\{[\\"]*n[\\"]*:[\\"]*(\d+)', loop.text)
        if noted:
            return float(noted[1])
        counted = self._counted(computation, loop)
        return self.dynamic_trips if counted is None else counted

    def _counted(self, computation: str, loop: Instruction) -> float | None:
        condition, body = hlo_text.called(loop, "condition"), hlo_text.called(loop, "body")
        test = hlo_text.root(self.computations[condition])
        if test.opcode != "compare" or "direction=LT" not in test.text:
            return None
        counter = hlo_text.element(self.symbols[condition].get(test.operands[0]))
        start = self.symbols[computation].get(loop.operands[0])
        if counter is None or start is None or start.opcode != "tuple":
            return None
        bound = self._constant(condition, test.operands[1])
        if bound is None:  # kept in the loop's state
            index = hlo_text.element(self.symbols[condition].get(test.operands[1]))
            bound = None if index is None else self._constant(computation, start.operands[index])
        if bound is None:
            return None
        first = self._constant(computation, start.operands[counter])
        step = self._step(body, counter)
        return float(max(0, math.ceil((bound - (first or 0)) / step)))

    def _step(self, body: str, counter: int) -> int:
        """What one iteration adds to the counter; 1 if it can't be seen."""
        root = hlo_text.root(self.computations[body])
        added = self.symbols[body].get(root.operands[counter]) if root.opcode == "tuple" else None
        if added is None or added.opcode != "add":
            return 1
        return next((c for c in (self._constant(body, operand) for operand in added.operands) if c), 1)

    def _constant(self, computation: str, name: str) -> int | None:
        found = self.symbols[computation].get(name)
        while found and found.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
            found = self.symbols[computation].get(found.operands[0])
        value = re.match(r"\((-?\d+)\)", found.text) if found and found.opcode == "constant" else None
        return int(value[1]) if value else None

    # ----------------------------------------------------------------------------------------------------- network
    def _sent(self, computation: str, one: Instruction, kind: str) -> tuple[Kind, float]:
        """((kind, crosses slices), bytes that this device sends), by the ring algorithms, which are optimal in bytes."""
        size = sum(array.bytes for operand in one.operands for array in self._arrays(computation, operand))
        if kind == "collective-permute":
            pairs = re.findall(r"\{(\d+),(\d+)\}", one.text)
            return (kind, self._far(pairs)), size
        group = hlo_text.replica_group(one.text)
        n = len(group) or 1
        return (kind, self._far([group])), size * _ring(kind, n)

    def _far(self, groups) -> bool:
        return bool(self.slice_devices) and any(len({int(i) // self.slice_devices for i in group}) > 1 for group in groups)

    def _through(self, computation: str, one: Instruction) -> float:
        """Bytes of main memory that a collective reads and writes. The start of an asynchronous one lists operands, then results."""
        results = one.arrays[len(one.operands) :] if one.opcode.endswith("-start") else one.arrays
        return _main(results) + sum(_main(self._arrays(computation, operand)) for operand in one.operands)

    # ------------------------------------------------------------------------------------------------------ memory
    def _memory(self, computation: str, one: Instruction) -> float:
        """Bytes of main memory that an instruction outside fusions reads and writes."""
        if one.opcode in _FREE or one.opcode.endswith("-done") or one.opcode in ("while", "conditional", "call", "async-start"):
            return 0.0
        if one.opcode in _SLICES or one.opcode == "slice-start":
            moved = one.arrays[-1] if one.opcode != "slice-start" else min(one.arrays, key=lambda a: (a.space not in (0, 1), a.bytes))
            reads = moved.bytes if any(a.space == 0 for a in self._arrays(computation, one.operands[0])) else 0.0
            return reads + (moved.bytes if moved.space == 0 else 0.0)
        if one.opcode == "dynamic-update-slice":
            return 2 * _main(self._arrays(computation, one.operands[1]))
        if one.opcode == "copy-start":
            return sum(array.bytes for array in one.arrays[:2] if array.space == 0)
        if one.opcode == "fusion":
            called = hlo_text.called(one, "calls")
            each = (_main(self._arrays(computation, operand)) and self._reads(called, index) for index, operand in enumerate(one.operands))
            return sum(each) + self._writes(called, one)
        return _main(one.arrays) + sum(_main(self._arrays(computation, operand)) for operand in one.operands)

    def _reads(self, called: str, index: int) -> float:
        """Bytes that a fusion reads of an operand: only the slices, if it takes slices of it."""
        lines = self.computations[called]
        own = next((one for one in lines if one.opcode == "parameter" and one.text.startswith(f"({index})")), None)
        if own is None:
            return 0.0
        total = 0.0
        for user in (one for one in lines if own.name in one.operands):
            place = user.operands.index(own.name)
            if user.opcode in COLLECTIVES or user.opcode in _PASSES:
                continue  # counted by its channel, or passed on
            if user.opcode in _SLICES and place == 0:
                total += sum(array.bytes for array in user.arrays)
            elif user.opcode == "fusion":
                total += self._reads(hlo_text.called(user, "calls"), place)
            elif not (user.opcode == "dynamic-update-slice" and place == 0):
                return sum(array.bytes for array in own.arrays)
        return min(total, sum(array.bytes for array in own.arrays))

    def _writes(self, called: str, one: Instruction) -> float:
        """Bytes that a fusion writes: only the update, if it updates an operand in place."""
        root = hlo_text.root(self.computations[called])
        names = root.operands if root.opcode == "tuple" else (root.name,)
        total = 0.0
        for name, array in zip(names, one.arrays, strict=False):
            made = self.symbols[called].get(name)
            while made and made.opcode == "bitcast":
                made = self.symbols[called].get(made.operands[0])
            if array.space == 0 and not (made and (made.opcode in COLLECTIVES or made.opcode in _PASSES)):
                if made is not None and made.opcode == "dynamic-update-slice":
                    total += sum(a.bytes for a in self._arrays(called, made.operands[1]))
                else:
                    total += array.bytes
        return total


def _ring(kind: str, n: int) -> float:
    """Bytes sent per byte of the operand, among n devices."""
    return {"all-gather": n - 1, "reduce-scatter": (n - 1) / n, "all-reduce": 2 * (n - 1) / n, "all-to-all": (n - 1) / n}.get(kind, 1.0)


def between_slices(text: str, size: float) -> tuple[Kind, float]:
    """((kind, True), bytes sent) for what XLA hands to the host for other slices, written as a send of `size` bytes."""
    kind = hlo_text.found(r'_xla_megascale_transfer_type="(\w+)"', text)[1].lower().replace("_", "-")
    target = re.search(r'_xla_megascale_target="\{([^}]*)\}', text)  # such as {1,2} or {0:3}, the slices
    ends = [part.split(":") for part in target[1].split(",")] if target else [["0", "1"]]
    n = sum(int(part[-1]) - int(part[0]) + 1 for part in ends)
    return (kind if kind in COLLECTIVES else "collective-permute", True), size * _ring(kind, max(n, 2))


def product_flops(one: Instruction, operands: Sequence[Array]) -> float:
    """Operations of a dot or a convolution: 2 per multiply-add whose factors both exist, as XLA's HloCostAnalysis counts."""
    left, right = operands
    if one.opcode == "dot":
        contracted = hlo_text.found(r"lhs_contracting_dims=\{([\d,]*)\}", one.text)[1]
        return 2.0 * math.prod(one.arrays[0].dims) * math.prod(left.dims[int(d)] for d in contracted.split(",") if d)
    a, b, c = hlo_text.found(r"dim_labels=(\w+)_(\w+)->(\w+)", one.text).groups()
    written = re.search(r"window=\{([^}]*)\}", one.text)
    window = {key: values.split("x") for key, values in re.findall(r"(\w+)=([\w\-]+)", written[1] if written else "")}
    groups = {key: int((re.search(rf"{key}_group_count=(\d+)", one.text) or (0, 1))[1]) for key in ("feature", "batch")}
    total = 2.0 * left.dims[a.index("f")] / groups["feature"] * right.dims[b.index("o")] * left.dims[a.index("b")] / groups["batch"]
    for number, label in enumerate(sorted(set(c) - {"b", "f"})):
        at = lambda key, default, number=number: window.get(key, [default] * (number + 1))[number]
        low, _ = at("pad", "0_0").split("_")
        total *= _valid(left.dims[a.index(label)], right.dims[b.index(label)], one.arrays[0].dims[c.index(label)], int(at("stride", "1")),
                        int(low), int(at("lhs_dilate", "1")), int(at("rhs_dilate", "1")))
    return total


def _valid(size: int, kernel: int, out: int, stride: int, low: int, dilate: int, kernel_dilate: int) -> int:
    """Number of pairs of an output position and a kernel position, in one dimension, that meet an entry of the input."""
    end, total = (size - 1) * dilate, 0
    for k in range(kernel):
        first = k * kernel_dilate - low  # input position of output 0; each next output's is stride further
        if dilate == 1:
            lowest, highest = max(0, -(first // stride)), min(out - 1, (end - first) // stride)
            total += max(0, highest - lowest + 1)
        else:
            total += sum(1 for o in range(out) if 0 <= first + o * stride <= end and (first + o * stride) % dilate == 0)
    return total


def _chain(one: Instruction) -> str | None:
    """What the parts of one collective split over several fusions share: its channel, and which of the channel's chains it is."""
    channel, chain = re.search(r"channel_id=(\d+)", one.text), re.search(r'chain_id="(\d+)"', one.text)
    return f"{channel[1]}/{chain[1]}" if channel and chain else None


def _main(arrays: Sequence[Array]) -> float:
    return sum(array.bytes for array in arrays if array.space == 0)
