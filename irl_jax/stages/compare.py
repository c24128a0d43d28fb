"""Finished runs side by side, as tables on standard output and a page. Runs that differ only in seed are pooled."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Sequence
from typing import NamedTuple

from irl_jax import artifacts, paths, workdir
from irl_jax.errors import UserError, printable
from irl_jax.overrides import leaves
from irl_jax.stages import evaluated, run_figures, run_tables
from irl_jax.stages.page import Raw, Section, escape, figures, page, table
from irl_jax.stages.plot_style import number
from irl_jax.stages.run_tables import Table

# Keys under data. and golden. that affect training only, not which data the policies are judged on or by which judge.
TRAINED_ON = ("data.max_demonstrations", "data.max_records", "data.preference_source", "data.development_fraction", "data.tfds_data_dir",
              "data.fields.chosen", "data.fields.rejected", "data.testbed.demonstrations", "data.testbed.pairs",
              "data.testbed.pretrain_responses", "data.testbed.label_noise", "data.testbed.development_prompts",
              "data.testbed.prompts")
_NOTE = ("A figure is the mean over the runs of a group. Behind ± stand its standard error over prompts and, after the slash, over seeds "
         "(where there is one figure, it is the one that is known).")


class Run(NamedTuple):
    """One finished run: folder as given, seed, settings {dotted key: value} without the seed, results, commit."""

    path: str
    seed: int
    settings: dict
    results: dict
    commit: str


def compare(folders: Sequence[str], out: str) -> None:
    """Prints the tables of the runs as Markdown and writes OUT/compare.html.

    Args:
      folders: workdirs of finished runs. out: the folder of compare.html, created if missing.

    Raises:
      UserError: not a workdir, not evaluated yet, the same run twice, different data or judges, or `out` cannot be created.
    """
    groups = grouped([load(folder) for folder in folders])
    results = {letter: [run.results for run in runs] for letter, runs in groups.items()}
    about, tables = [each_run(groups), *what_differs(groups)], run_tables.all_tables(results)
    target = paths.of(out) / "compare.html"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out}: cannot be made a folder: {error.strerror or error}") from None
    content = page("irl_jax: runs side by side", f'<p class="soft">{escape(_NOTE)}</p>', [
        Section("runs", "Runs", _html(about[0], False) + "".join(map(_html, about[1:]))),
        Section("figures", "Figures", figures(run_figures.draw(results))),
        *(Section(f"table-{index}", shown.title, _html(shown, False)) for index, shown in enumerate(tables, start=1))])
    paths.write(target, lambda file: file.write(content))
    print("\n\n".join(shown.markdown() for shown in (*tables, *about)))
    print(f"\n{_NOTE}\n\ncomparison: {printable(str(target))}")


def load(folder: str) -> Run:
    """Reads one finished run; writes nothing.

    Raises:
      UserError: not a workdir, or not evaluated yet.
    """
    path = paths.of(folder)
    if not (path / workdir.CONFIG).is_file():
        raise UserError(f"{folder}: not a workdir (no {workdir.CONFIG} there); compare takes folders of runs")
    if not (path / "results.json").is_file():
        raise UserError(f"{folder}: no results.json yet, which the stage `evaluate` writes; finish the run first")
    config = artifacts.read_json(path / workdir.CONFIG, workdir.WRITTEN, advice=workdir.REPLACE)
    settings = leaves(config["config"])
    seed = settings.pop("seed", None)
    kept = {key: value for key, value in settings.items() if not key.startswith(workdir.FREE)}
    return Run(str(folder), seed, kept, evaluated.read(path), str(config.get("git_commit") or "not known"))


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """{letter: runs that differ only in the seed}, in the order given.

    Raises:
      UserError: two runs have the same config and seed, or were judged on different data or by different judges.
    """
    first = runs[0]
    found: dict[str, list[Run]] = {}
    for run in runs:
        for key in dict.fromkeys([*first.settings, *run.settings]):
            if key.startswith(("data.", "golden.")) and key not in TRAINED_ON and _shown(first, key) != _shown(run, key):
                raise UserError(f"{run.path}: other data than {first.path}'s: {key} is {_shown(run, key)} here and {_shown(first, key)} "
                                "there; compare takes runs that are judged on the same data")
        same = found.setdefault(json.dumps(run.settings, sort_keys=True), [])
        twin = next((other for other in same if other.seed == run.seed), None)
        if twin:
            raise UserError(f"{run.path}: the same config and seed ({run.seed}) as {twin.path}; give each run once")
        same.append(run)
    letters = string.ascii_uppercase if len(found) <= 26 else [str(i) for i in range(1, len(found) + 1)]
    return dict(zip(letters, found.values(), strict=False))


def _shown(run: Run, key: str) -> str:
    return json.dumps(run.settings[key]) if key in run.settings else "absent"


def each_run(groups: dict[str, list[Run]]) -> Table:
    """One row per run: its group, seed, seconds, the leak check and the commit."""
    rows = []
    for letter, runs in groups.items():
        for run in runs:
            timing = (run.results.get("timing") or {}).values()
            seconds = math.fsum(filter(math.isfinite, (number((row or {}).get("seconds")) for row in timing)))
            gap = ((run.results.get("rewards") or {}).get("init_sft") or {}).get("auc_minus_log_ratio") or {}
            difference, stderr = number(gap.get("difference")), number(gap.get("stderr"))
            leak = f"{difference:+.3f} ± {stderr:.3f}" if math.isfinite(difference) else "–"
            rows.append([run.path, letter, str(run.seed), f"{seconds:.0f}" if timing else "–", leak, run.commit[:12]])
    return Table("Runs", ["workdir", "run", "seed", "seconds", "AUC of init_sft less the log-ratio's", "commit"], rows)


def what_differs(groups: dict[str, list[Run]]) -> list[Table]:
    """The settings in which the groups differ, one column per group. [] if none differ."""
    heads = {letter: runs[0] for letter, runs in groups.items()}
    keys = dict.fromkeys(key for run in heads.values() for key in run.settings)
    rows = [[key, *(_shown(run, key) for run in heads.values())] for key in keys if len({_shown(run, key) for run in heads.values()}) > 1]
    return [Table("Settings that differ", ["setting", *heads], rows)] if rows else []


def _html(shown: Table, seen: bool = True) -> str:
    return table(f"{shown.title}.", shown.head, [[name, *(Raw(escape(cell)) for cell in cells)] for name, *cells in shown.rows], seen)
