"""What was measured: one dictionary a case, kept in results.json and printed as a Markdown table.

python -m benchmarks.speed.table [RESULTS.json] [--into=docs/speed.md] prints the table of what was kept, or writes it into a page, between
its lines `<!-- results:begin -->` and `<!-- results:end -->`.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import sys
import time
from typing import NamedTuple

from benchmarks.speed.timing import Timed, summary

BUSY = 0.1  # share of the cores held by others from which a row is marked
KEY = ("case", "size", "peer", "dtype", "quick")


class Target(NamedTuple):
    """What is aimed at, as one reads it, and the ratio theirs / ours that meets it."""

    text: str
    ratio: float


def row(case: str, size: str, peer: str, timed: Timed, work: str, *, dtype: str = "float32", target: Target | None = None,
        unit: str = "call", checked: str = "", note: str = "", **more) -> dict:
    """A measured case.

    Args:
        case, size, peer: their names in the table. timed: seconds a unit of both sides. work: the batch and lengths. unit: what the
        seconds are of. checked: what was asserted equal beforehand. note: what else a reader must know. more: kept in the JSON.
    """
    out = {"case": case, "size": size, "peer": peer, "dtype": dtype, "work": work, "unit": unit, **summary(timed), "checked": checked,
           "note": note, "measured": time.strftime("%Y-%m-%d %H:%M"), **more}
    if target is not None:
        out |= {"target": target.text, "target_ratio": target.ratio, "met": out["ratio"] >= target.ratio}
    return out


def merge(old: list[dict], new: list[dict]) -> list[dict]:
    """The old rows with the new ones in the places of those measured again, and after them those that are new."""
    rows = {tuple(r.get(k) for k in KEY): r for r in old}
    rows.update({tuple(r.get(k) for k in KEY): r for r in new})
    return list(rows.values())


def read(path) -> dict:
    """results.json, or an empty one."""
    path = pathlib.Path(path)
    return json.loads(path.read_text()) if path.is_file() else {"schema": 1, "rows": [], "curves": {}, "machine": {}}


def write(path, results: dict) -> None:
    """Replaces the file."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(path)


def verdict(r: dict) -> str:
    """met or short of the target, plainly."""
    if "met" not in r:
        return "–"
    return f"{r['target']}: {'met' if r['met'] else 'short'}"


def seconds(value: float) -> str:
    """Three digits."""
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def markdown(rows: list[dict]) -> str:
    """The table, and under it the notes that its rows carry."""
    lines = ["| case | size | beside | work | irl_jax | peer | ratio (quartiles; rounds) | target |", "|" + "---|" * 8]
    notes: dict[str, None] = {}
    busy = [r for r in rows if r.get("others_busy", 0) > BUSY]
    if busy:
        most = max(r["others_busy"] for r in busy)
        notes[f"(!): other processes held up to {most:.0%} of the cores meanwhile, which slows torch's spinning threads more than XLA's: "
              "measure again on an idle machine before quoting the ratio"] = None
    usual = collections.Counter(r.get("vectors", "") for r in rows).most_common(1)[0][0] if rows else ""
    others = [r for r in rows if r.get("vectors", "") not in ("", usual)]
    for vectors in dict.fromkeys(r["vectors"] for r in others):
        notes[f"({vectors}): measured on another machine, whose processor has {vectors} where the others' has {usual}"] = None
    for r in rows:
        low, high = r["ratio_quartiles"]
        per = "" if r["unit"] == "call" else f" per {r['unit']}"
        ratio = f"**{r['ratio']:.2f}** ({low:.2f} to {high:.2f}; {r['rounds']}){' (!)' if r in busy else ''}"
        ratio += f" ({r['vectors']})" if r in others else ""
        cells = (r["case"] + ("" if r["dtype"] == "float32" else f", {r['dtype']}"), r["size"], r["peer"], r["work"],
                 seconds(r["ours_seconds"]) + per, seconds(r["theirs_seconds"]) + per, ratio, verdict(r))
        lines.append(f"| {' | '.join(cells)} |")
        if r["note"]:
            notes[f"{r['case']}, {r['peer']}: {r['note']}"] = None
    return "\n".join(lines) + ("\n\n" + "\n".join(f"- {note}" for note in notes) if notes else "")


def stages(rows: list[dict]) -> str:
    """Seconds of the whole job's stages, a line a size and side; of rounds, the last."""
    jobs = [r for r in rows if r.get("stages")]
    names = list(dict.fromkeys(name for r in jobs for side in r["stages"].values() for name in side[-1]))
    if not jobs:
        return ""
    lines = [f"| the whole job, seconds | side | {' | '.join(names)} |", "|" + "---|" * (2 + len(names))]
    for r in jobs:
        for side, rounds in r["stages"].items():
            lines.append(f"| {r['size']}, share {r['share']:g} | {side} | {' | '.join(_cell(rounds[-1].get(name)) for name in names)} |")
    return "\n".join(lines)


def _cell(value) -> str:
    return "–" if value is None else f"{value:.1f}"


def page(results: dict) -> str:
    """What docs/speed.md has between its marks."""
    machine = results["machine"]
    named = ("processor", "vectors", "cores", "system", "dtypes")
    held = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in named)
    head = f"{machine['cores']} cores of a processor that calls itself {machine['processor']}; {held}."
    return "\n\n".join(part for part in (head, markdown(results["rows"]), stages(results["rows"])) if part)


def main(argv) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.table")
    parser.add_argument("results", nargs="?", default="benchmarks/results.json")
    parser.add_argument("--into", default="", help="a page with the two marks")
    arguments = parser.parse_args(argv)
    text = page(read(arguments.results))
    if not arguments.into:
        print(text)
        return 0
    path = pathlib.Path(arguments.into)
    before, begin, rest = path.read_text().partition("<!-- results:begin -->\n")
    _, end, after = rest.partition("<!-- results:end -->")
    if not begin or not end:
        parser.error(f"{path}: has no <!-- results:begin --> and <!-- results:end -->")
    path.write_text(f"{before}{begin}{text}\n{end}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
