"""A plan as a table."""

from __future__ import annotations

from irl_jax.chips import GIB

_SHORT = {"all-gather": "gather", "reduce-scatter": "scatter", "all-reduce": "reduce", "all-to-all": "to-all",
          "collective-permute": "permute"}  # fmt: skip
_PARTS = ("arguments", "temporaries", "outputs", "aliased", "peak", "resident", "total")
_WORK = ("work", "TFLOP", "of ideal", "HBM GB", "sent GB", "compute s", "memory s", "network s", "binds", "compile s")


def render(plan: dict) -> str:
    """The lines of a plan: memory and then work of each program, then what to change if one doesn't fit."""
    chip, mesh = plan["chip"], " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    slices = f"{plan['slices']} slices of " if plan["slices"] > 1 else ""
    lines = [f"{slices}{plan['topology']}: {plan['chips']} chips of {chip['memory'] / GIB:.2f} GiB, mesh {mesh}; all of one chip", ""]
    lines += _table(("GiB", "tokens", *_PARTS, "fits"), [_memory(row) for row in plan["steps"]])
    done = [row for row in plan["steps"] if "flops" in row]
    if done:
        lines += ["", *_table(_WORK, [_work(row) for row in done]), ""]
        lines += [f"{row['step']}: {_roles(row)}; sends {_kinds(row)}; {_logits(row)}" for row in done]
    advice = [row["advice"] for row in plan["steps"] if row.get("advice")]
    return "\n".join([*lines, *(["", *advice] if advice else [])])


def _memory(row: dict) -> tuple[str, ...]:
    sizes = [f"{row['bytes'][part] / GIB:.2f}" if part in row["bytes"] else "-" for part in _PARTS]
    return row["step"], f"{row['tokens']:,.0f}", *sizes, "yes" if row["fits"] else "NO"


def _work(row: dict) -> tuple[str, ...]:
    ratio = f"{row['flops'] / row['ideal_flops']:.2f}" if row["ideal_flops"] else "-"
    seconds = [f"{row['seconds'][part]:.3g}" for part in ("compute", "memory", "network")]
    sent = sum(row["network_bytes"].values())
    return (row["step"], f"{row['flops'] / 1e12:.3g}", ratio, f"{row['hbm_bytes'] / 1e9:.3g}", f"{sent / 1e9:.3g}", *seconds, row["binds"],
            f"{row['compile_seconds']:.0f}")  # fmt: skip


def _roles(row: dict) -> str:
    return "roles " + " + ".join(f"{role} {size / GIB:.2f}" for role, size in row["roles"].items())


def _logits(row: dict) -> str:
    return f"logits of {row['vocabulary_tokens']:,.0f} of {row['tokens']:,.0f} tokens at a time"


def _kinds(row: dict) -> str:
    parts = [f"{sent / 1e9:.3g} GB {_SHORT.get(kind, kind)}" for kind, sent in row["network_bytes"].items() if sent]
    return ", ".join(parts) or "nothing"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    return ["  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True)))
            for line in (head, *rows)]  # fmt: skip
