"""What to change where a program does not fit: the first setting that would do, by a simple model that a recompilation checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from irl_jax.chips import GIB


def advise(row: dict, planner, chip, again: Callable[[dict], dict]) -> str:
    """One line that names a setting, and what it gives.

    The candidates, in order: model.remat, then model.loss_chunk where it chose itself, then more micro-batches (training)
    or fewer rows (sampling, scoring), each with what lies there anyway unchanged and the rest in proportion. Where the roles alone
    are too much, only more chips help, or adapters in place of whole trunks.

    Args:
        row: of `aot.measure`. planner: that made it. chip: whose memory is to hold it. again: {setting: value} -> row with it.
    """
    need, has = row["bytes"]["total"] / GIB, chip.memory / GIB
    head = f"{row['step']}: {need:.1f} GiB of {has:.1f}: "
    held = sum(row["roles"].values())
    if held >= chip.memory:
        return head + _more_chips(held, chip, planner)
    tried = []
    for changed in _candidates(row, planner, chip.memory - held, held):
        other = again(changed)
        words = " ".join(f"{key}={value}" for key, value in changed.items())
        tried.append(f"{words} needs {other['bytes']['total'] / GIB:.1f}")
        if other["fits"]:
            return head + f"set {words} (needs {other['bytes']['total'] / GIB:.1f} GiB, compiled)"
    return head + f"not enough: {'; '.join(tried) or 'nothing smaller to try'}; {_more_chips(held, chip, planner)}"


def _candidates(row: dict, planner, room: float, held: float) -> Iterator[dict[str, Any]]:
    """Settings to try, as {key: value}; each keeps those before it that cost nothing but time."""
    config, section = planner.config, row["section"]
    kept: dict[str, Any] = {}
    rows = _local_rows(row, planner)
    if row["step"] in ("sft", "reward", "policy"):
        if config.model.remat == "none":
            kept = kept | {"model.remat": "full"}
            yield kept
        if row["step"] != "reward" and not config.model.loss_chunk:
            kept = kept | {"model.loss_chunk": 256 * planner.mesh.size}
            yield kept
        factor = max(2, math.ceil((row["bytes"]["total"] - held) / room)) if math.isfinite(row["bytes"]["total"]) else 4
        now = config[section].accumulate
        for parts in _divisors(rows * now, now * factor)[:2]:
            yield kept | {f"{section}.accumulate": parts}
    elif row["step"] in ("sample", "score"):
        key = {"sample": "sample.rows", "score": "eval.batch_size"}[row["step"]]
        size = config[section].rows if row["step"] == "sample" else config[section].batch_size
        factor = (row["bytes"]["total"] - held) / room
        if rows > 1 and math.isfinite(factor):
            yield {key: max(1, int(size / max(2, math.ceil(factor))))}
    elif config.policy.batch_size > planner.mesh.shape["data"] * planner.mesh.shape["fsdp"]:
        factor = max(2, math.ceil((row["bytes"]["total"] - held) / room))
        yield {"policy.batch_size": max(1, config.policy.batch_size // factor)}
    elif config.policy.samples > 2:
        yield {"policy.samples": config.policy.samples // 2}


def _local_rows(row: dict, planner) -> int:
    """Rows of a micro-batch that one device has."""
    length = planner.config.sft.row_tokens if row["step"] == "sft" else planner.longest
    accumulate = planner.config[row["section"]].get("accumulate", 1)
    return max(1, round(row["tokens"] * planner.mesh.shape["tensor"] / max(length, planner.longest) / accumulate))


def _divisors(number: int, least: int) -> list[int]:
    """Divisors of a number, from `least` on."""
    return [d for d in range(least, number + 1) if number % d == 0]


def _more_chips(held: float, chip, planner) -> str:
    ways = planner.mesh.shape["fsdp"] * planner.mesh.shape["tensor"]
    needed = 2 ** math.ceil(math.log2(max(2 * ways, ways * held / (0.7 * chip.memory))))
    words = f"the roles alone take {held / GIB:.1f} GiB a chip: split them over more, mesh.fsdp={needed // planner.mesh.shape['tensor']}"
    return words + (", or train adapters (adapter.rank=16)" if not planner.rank else "")
