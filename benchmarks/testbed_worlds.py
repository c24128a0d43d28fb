"""The picture of docs/testbed.md: what the gates find as the dial `kinds` goes from the hard world's mix to the quickstart's kinds.

  for k in 0 0.5 1; do
    python -m irl_jax run --config=configs/testbed.py --workdir=runs/dial-$k --stages=pretrain,sft,sample --config.seed=100 \
        --config.data.testbed.kinds=$k
    python benchmarks/testbed_gates.py runs/dial-$k --log=docs/evidence/worlds.json --world="dial $k"
  done
  python -m benchmarks.testbed_worlds        # docs/evidence/worlds.json -> docs/testbed_worlds.svg, and a table of every world

Rows whose world is "dial ..." are the sweep. At 1 it is the quickstart's world; at 0 the law is the hard world's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from irl_jax import artifacts
from irl_jax.stages import plots
from irl_jax.stages.plot_style import LIGHT

DOCS = Path(__file__).parent.parent / "docs"
TEMPERATURES = {"1.0": "T = 1", "0.5": "T = 0.5", "0.25": "T = 0.25", "0.0": "greedy"}
GAINS = {"gain by labelled pairs, T = 1.0": "labelled pairs", "gain by length, T = 1.0": "length",
         "gain by mean log-prob, T = 1.0": "mean log-prob, T = 1", "gain by mean log-prob, T = 0.5": "mean log-prob, T = 0.5"}
COLUMNS = {"golden of init": "init", "golden of demo": "demo",
           **{f"golden of sft, T = {t}": f"sft, {name}" for t, name in TEMPERATURES.items()}, "oracle's gain, T = 1.0": "oracle", **GAINS,
           "gain by length, T = 0.5": "length, T = 0.5",
           "variance between kinds, T = 1.0": "between kinds"}


def dial(rows) -> list[tuple[float, dict[str, float]]]:
    """(kinds, figures) of the sweep's rows, by kinds."""
    found = [(float(row["world"].removeprefix("dial")), row["figures"]) for row in rows if row["world"].startswith("dial")]
    return sorted(found, key=lambda pair: pair[0])


def draw(rows, path) -> None:
    """Two panels over the dial: sft's golden over the demonstrations' at each temperature, and gains as shares of the oracle's."""
    kinds, points = zip(*dial(rows), strict=True)
    with matplotlib.rc_context(plots.style(LIGHT) | {"svg.hashsalt": "irl_jax", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8.0, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for color, (t, name) in zip(LIGHT.others, TEMPERATURES.items(), strict=False):
            values = [figures[f"sft's golden over the demonstrations', T = {t}"] for figures in points]
            left.plot(kinds, values, "o-", color=color, label=f"sft, {name}")
        left.axhline(0.85, color=LIGHT.text, linestyle=":", label="gate")
        left.set_title("golden of sft over the demonstrations'")
        for color, (key, name) in zip(LIGHT.others, GAINS.items(), strict=False):
            right.plot(kinds, [figures[key] for figures in points], "o-", color=color, label=name)
        between = [figures["variance between kinds, T = 1.0"] for figures in points]
        right.plot(kinds, between, "s--", color=LIGHT.text, label="variance between kinds")
        right.set_title("best-of-16's gain, oracle's = 1")
        for axes in (left, right):
            axes.set_xlabel("kinds: 0 mixed, 1 pure")
            axes.set_xticks(kinds)
            axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path, metadata={"Date": None})


def table(rows) -> str:
    """Every world tried, as a table in Markdown."""
    lines = ["| world | seed | " + " | ".join(COLUMNS.values()) + " | gates that fail |", "|---" * (len(COLUMNS) + 3) + "|"]
    for row in rows:
        cells = [f"{row['figures'][key]:.2f}" if key in row["figures"] else "" for key in COLUMNS]
        lines.append(f"| {row['world']} | {row['seed']} | " + " | ".join(cells) + f" | {'; '.join(row['failed']) or 'none'} |")
    return "\n".join(lines)


def main() -> int:
    rows = artifacts.read_json(DOCS / "evidence" / "worlds.json")
    draw(rows, DOCS / "testbed_worlds.svg")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
