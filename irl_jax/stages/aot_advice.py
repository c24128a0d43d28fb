"""What to change if a program doesn't fit: the first sufficient setting, guessed by a simple model and checked by recompiling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from irl_jax.chips import GIB


def advise(row: dict, planner, chip, again: Callable[[dict], dict]) -> str:
    """One line that names a setting and the memory needed with it.

    The candidates, in order: model.remat, then model.loss_chunk if it was automatic, then more micro-batches (training) or
    fewer rows or samples (other programs). The roles' memory is taken as fixed and the rest as proportional. If the roles alone
    don't fit, only more chips help, or adapters in place of whole trunks.

    Args:
        row: from `aot.measure`. planner: made the row. chip: must hold it. again: {setting: value} -> row with that setting.
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
    """Settings to try, as {key: value}. Each keeps earlier ones that cost only time."""
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
    """Rows of a micro-batch per device."""
    length = planner.config.sft.row_tokens if row["step"] == "sft" else planner.longest
    accumulate = planner.config[row["section"]].get("accumulate", 1)
    return max(1, round(row["tokens"] * planner.mesh.shape["tensor"] / max(length, planner.longest) / accumulate))


def _divisors(number: int, least: int) -> list[int]:
    """Divisors of a number that are at least `least`."""
    return [d for d in range(least, number + 1) if number % d == 0]


def _more_chips(held: float, chip, planner) -> str:
    ways = planner.mesh.shape["fsdp"] * planner.mesh.shape["tensor"]
    needed = 2 ** math.ceil(math.log2(max(2 * ways, ways * held / (0.7 * chip.memory))))
    words = f"the roles alone take {held / GIB:.1f} GiB a chip: split them over more, mesh.fsdp={needed // planner.mesh.shape['tensor']}"
    return words + (", or train adapters (adapter.rank=16)" if not planner.rank else "")
