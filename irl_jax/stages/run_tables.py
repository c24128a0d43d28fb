"""Tables of finished runs side by side. Runs of one config are pooled over their seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from irl_jax.errors import printable
from irl_jax.evaluation.pooling import pooled
from irl_jax.stages.plot_style import number

BEST_OF = 16  # n of the best-of-n columns
Groups = Mapping[str, Sequence[Mapping]]  # {letter: the results.json of each of its runs}


class Table(NamedTuple):
    """Text cells. The first of a row names it, as code if `code`."""

    title: str
    head: list[str]
    rows: list[list[str]]
    code: bool = True

    def markdown(self) -> str:
        """The table in Markdown."""
        return markdown(self.head, [[code(name) if self.code else plain(name), *map(plain, cells)] for name, *cells in self.rows])


def markdown(head: Sequence, rows: Sequence[Sequence]) -> str:
    """A Markdown table of Markdown cells."""
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def code(text: object) -> str:
    """Text as a Markdown code span."""
    shown = printable(" ".join(str(text).split()))
    ticks = "`" * (max(map(len, re.findall("`+", shown)), default=0) + 1)
    space = " " * (len(ticks) > 1)
    return f"{ticks}{space}{shown}{space}{ticks}"


def plain(text: object) -> str:
    """Text for a line of Markdown, escaped so that it begins no HTML or code."""
    return re.sub("[<`]", r"\\\g<0>", printable(" ".join(str(text).split())))


def all_tables(groups: Groups) -> list[Table]:
    """The tables with rows: policies, rewards, paired differences, divergences, and differences to the first group."""
    tables = [policies(groups), rewards(groups), paired(groups), divergences(groups), differences(groups)]
    return [table for table in tables if table.rows]


def _field(key: str, stderr: str = "", digits: int = 3) -> Callable:
    """A function that pools the rows of several runs into a cell."""
    return lambda rows: pooled([row.get(key) for row in rows], [row.get(stderr) for row in rows] if stderr else None, digits)


def _side_by_side(title: str, first: str, groups: Groups, part: Callable, columns: Mapping[str, Callable]) -> Table:
    """A row per name in `part` of the results and per group that has it. `part(results)` is {name: row}."""
    parts = {letter: [part(run) for run in runs] for letter, runs in groups.items()}
    rows = []
    for name in dict.fromkeys(name for runs in parts.values() for run in runs for name in run):
        for letter, runs in parts.items():
            if all(run.get(name) is not None for run in runs):
                cells = [cell([run[name] for run in runs]) for cell in columns.values()]
                rows.append([name, *([letter] if len(groups) > 1 else []), *cells])
    return Table(title, [first, *(["run"] if len(groups) > 1 else []), *columns], rows)


def policies(groups: Groups) -> Table:
    """Golden, length, KL, diversity and init's log-prob of every policy."""
    return _side_by_side("Policies", "policy", groups, lambda run: run.get("policies") or {}, {
        "golden": _field("golden_mean", "golden_stderr"), "tokens": _field("length_mean", digits=1),
        "KL to sft, nats": _field("kl_to_sft", "kl_to_sft_stderr", 2), "distinct-2": _field("distinct_2"),
        "init's log-prob a token": _field("init_logprob", digits=2)})


def best_of(row: Mapping, n: int = BEST_OF) -> Mapping:
    """A reward's best-of-n at one n; {} if not measured."""
    return next((point for point in row.get("best_of_n") or [] if point["n"] == n), {})


def rewards(groups: Groups) -> Table:
    """AUC, rank correlations, best-of-16 and accuracy on pairs of every reward."""
    golden, wins = _field("golden", "stderr"), _field("win_rate", "win_rate_stderr")
    return _side_by_side("Rewards", "reward", groups, lambda run: run.get("rewards") or {}, {
        "held-out AUC": _field("heldout_auc", "heldout_auc_stderr"),
        "Spearman with golden": _field("spearman_golden", "spearman_golden_stderr"),
        "with length": _field("spearman_length", "spearman_length_stderr"),
        f"golden of best-of-{BEST_OF}": lambda rows: golden([best_of(row) for row in rows]),
        f"win rate of best-of-{BEST_OF}": lambda rows: wins([best_of(row) for row in rows]),
        "accuracy on held-out pairs": _field("pair_accuracy")})


def paired(groups: Groups) -> Table:
    """Differences on the same prompts, and each run's in its own standard errors."""
    def each(rows):
        return ", ".join(f"{z:+.1f}" if math.isfinite(z := number(row.get("z"))) else "–" for row in rows)

    return _side_by_side("Differences on the same prompts", "difference on the same prompts", groups,
                         lambda run: {row["name"]: row for row in run.get("paired") or []},
                         {"mean": _field("difference", "stderr"), "in standard errors, each run": each})._replace(code=False)


def divergences(groups: Groups) -> Table:
    """Divergences from the demonstrator, without the demonstrator's own row."""
    return _side_by_side("Divergences from the demonstrator", "policy", groups, lambda run: {
        name: row for name, row in (run.get("divergences") or {}).items() if "forward_kl" in row}, {
        "forward KL": _field("forward_kl", "forward_kl_stderr", 2), "reverse KL": _field("reverse_kl", "reverse_kl_stderr", 2),
        "Jensen-Shannon": _field("jensen_shannon", "jensen_shannon_stderr", 2), "noise rate": _field("noise_rate"),
        "off the grammar": _field("off_grammar_share")})


def golden_of(run: Mapping) -> dict[str, tuple]:
    """{policy or best-of-16: (golden, its standard error over prompts)} of one run; {} if not judged."""
    found = {name: (row.get("golden_mean"), row.get("golden_stderr")) for name, row in (run.get("policies") or {}).items()}
    for recipe, row in (run.get("rewards") or {}).items():
        found[f"best-of-{BEST_OF} by {recipe}"] = (best_of(row).get("golden"), best_of(row).get("stderr"))
    return {name: pair for name, pair in found.items() if math.isfinite(number(pair[0]))}


def differences(groups: Groups) -> Table:
    """Golden of every other group minus the first's, over the seeds that both have."""
    (first, base), *others = groups.items()
    rows = []
    for letter, runs in others:
        pairs = [(golden_of(run), golden_of(there)) for run in runs for there in base if run.get("seed") == there.get("seed")]
        for name in dict.fromkeys(name for ours, theirs in pairs for name in ours if name in theirs):
            both = [(ours[name], theirs[name]) for ours, theirs in pairs if name in ours and name in theirs]
            errors = [error if math.isfinite(error := math.hypot(number(a[1]), number(b[1]))) else None for a, b in both]
            rows.append([name, letter, pooled([a[0] - b[0] for a, b in both], errors), str(len(both))])
    return Table(f"Golden less that of {first}", ["policy or best-of-n", "run", "difference", "seeds"], rows)
