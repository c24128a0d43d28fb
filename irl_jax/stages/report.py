"""The report: one self-contained page of tables, figures and samples, from results alone."""

from __future__ import annotations

import base64
import html
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from irl_jax import distributed, paths
from irl_jax.config import CONTROLS
from irl_jax.errors import UserError
from irl_jax.stages import STAGES
from irl_jax.stages.plot_style import DPI, golden_label, number
from irl_jax.stages.plots import Plot, draw_all
from irl_jax.workdir import read_json, read_jsonl, write_json

TIMED = tuple(stage for stage in STAGES if stage != "report")
MISSING = "–"
BEST_OF = (4, 16, 50)  # columns of the best-of-n table, where measured
OPEN_SAMPLES = 3  # prompts shown unfolded
CARDS = 8, 4  # policies and best-of-n's at a glance; the others are in the tables
OPEN_COMPARISONS = 40  # rows of paired comparisons shown unfolded
LABELS = {"ended_share": "ended by EOS (share)", "init_logprob": "log-prob under init (nats/token)",
          "noise_rate": "noise (share of tokens)", "off_grammar_share": "off the grammar (share of tokens)",
          "auc_sft_against_init": "AUC, sft against init", "coverage": "coverage (share of the demonstrator's sentences)",
          "coverage_unweighted": "coverage (mean over kinds)", "kind_entropy": "entropy over kinds (nats)",
          "other_kinds": "other kinds (share of sentences)", "disagreement": "members' disagreement (deviations)",
          "at_same_kl": "golden less policy/init_sft's at the same KL"}  # of columns beyond the schema's
_STYLE = """
:root{color-scheme:light dark;--fg:#1d2329;--soft:#57606a;--bg:#fff;--card:#f5f7f9;--line:#d8dde3;--link:#0b62a8}
@media (prefers-color-scheme:dark){:root{
 --fg:#e4e8ec;--soft:#a3adb8;--bg:#171b20;--card:#20262d;--line:#3a424b;--link:#7cc0f4}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1rem;font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
 color:var(--fg);background:var(--bg)}
h1{font-size:1.6rem;line-height:1.25;margin:.5rem 0}h2{font-size:1.25rem;margin:2.2rem 0 .6rem}
h3{font-size:1rem;margin:1rem 0 .4rem}
p{max-width:46rem}a{color:var(--link)}.soft,figcaption,caption{color:var(--soft)}
nav ul{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.3rem 1rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.7rem;padding:0;margin:1rem 0}
.cards div{background:var(--card);border-radius:.5rem;padding:.6rem .8rem}
.cards dt{color:var(--soft);font-size:.85rem;overflow-wrap:anywhere}
.cards dd{margin:0;font-size:1.3rem;font-variant-numeric:tabular-nums}
.cards small{font-size:.8rem;color:var(--soft);white-space:nowrap}
.scroll{overflow-x:auto;margin:.6rem 0 1.2rem}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding-bottom:.4rem;font-size:.9rem}
caption span{display:block;position:sticky;left:0;max-width:min(46rem,calc(100vw - 2.5rem))}
th,td{padding:.35rem .7rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:bottom}
td{white-space:nowrap}thead th{font-weight:600;min-width:5rem;max-width:10rem}
th:first-child{text-align:left;position:sticky;left:0;background:var(--bg)}
tbody th{font-weight:500;white-space:nowrap}td.text{text-align:left;white-space:normal;overflow-wrap:anywhere}
@media (max-width:40rem){body{padding:.8rem}tbody th{white-space:normal;overflow-wrap:break-word;max-width:9.5rem}
 th,td{padding:.35rem .5rem}}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1rem 1.5rem;align-items:start}
figure{margin:0}figure img{width:100%;max-width:36rem;height:auto;display:block}figcaption{font-size:.85rem;max-width:36rem}
.responses{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,15rem),1fr));gap:.7rem}
.response{background:var(--card);border-radius:.5rem;padding:.6rem .8rem}
.response h4{margin:0;font-size:.9rem}.response p,.prompt{white-space:pre-wrap;overflow-wrap:anywhere;margin:.4rem 0}
.prompt{border-left:.25rem solid var(--line);padding-left:.7rem}.response ul{list-style:none;margin:0;padding:0;font-size:.8rem;
 color:var(--soft)}
.response li{display:inline-block;margin-right:.8rem}details{margin:.6rem 0}summary{cursor:pointer;padding:.3rem 0}
summary>h3{display:inline}
"""


class Cell(NamedTuple):
    """A number with its standard error (None where there is none), and its decimals (None: as its size deserves)."""

    value: Any
    stderr: Any = None
    digits: int | None = None


class Material(NamedTuple):
    """A run to show: results.json with what the figures need beside it, samples side by side, and curves of training."""

    results: dict
    samples: list
    curves: dict


class Section(NamedTuple):
    """One part of the page; an empty body leaves it out."""

    anchor: str
    title: str
    body: str


def run(context) -> dict:
    """Adds the stages' timing to W/results.json and draws W/report from what `evaluate` left."""
    path = context.workdir.path
    results = read_json(path / "results.json")
    finished = [stage for stage in TIMED if context.workdir.is_done(stage)]
    results["timing"] = {stage: read_json(path / stage / "done.json")["timing"] for stage in finished}
    write_json(path / "results.json", results)
    material = read(path)
    title = "irl_jax: " + ("the embedded testbed" if context.is_testbed else context.config.data.source)
    everything = {**material.results, "settings": context.config.to_dict(), "title": title}
    distributed.primary_first(lambda: write_report(path / "report", everything, material.samples, material.curves))
    return {}


def read(workdir: str | os.PathLike) -> Material:
    """What the evaluated run in a workdir left to show; the arguments of `write_report`, and of `plots.draw_all`.

    Raises:
      UserError: no results there yet.
    """
    path = paths.of(workdir)
    if not (path / "results.json").exists():
        raise UserError(f"{path}: no results.json there; run the stage that writes it (--stages=evaluate)")
    material = read_json(path / "evaluate" / "report.json")
    return Material({**read_json(path / "results.json"), **material}, material["samples"], _training_curves(path))


def _training_curves(path) -> dict:
    """{stage: {metric: {"step", "value"}}} of every metrics.jsonl below the workdir."""
    curves: dict = {}
    for file in (file for file in paths.files(path) if file.name == "metrics.jsonl"):
        metrics = curves.setdefault(file.parent.relative_to(path).as_posix(), {})
        for line in read_jsonl(file):
            for name, value in line.items():
                if name != "step" and value is not None:
                    curve = metrics.setdefault(name, {"step": [], "value": []})
                    curve["step"].append(line["step"])
                    curve["value"].append(value)
    return curves


def write_report(directory: str | os.PathLike, results: Mapping, samples: Sequence[Mapping] = (),
                 training_curves: Mapping | None = None) -> str:
    """Writes index.html, which needs no other file, and the figures as PNGs beside it.

    Args:
      directory: of the report, W/report; made where missing.
      results: results.json, plus `over_training` {role: {step, reward, reward_stderr, golden, golden_stderr: lists}},
        `paired` [{name, difference, stderr, z, n}], `rewards[...]["tilting"]`, `histograms`
        {recipe: {source: {edges, counts}}}, `scatter` {recipe: {length, reward, golden}}, `settings` (the config as nested
        dicts) and `title`. Any of them may be missing: their part of the page is then left out. Further numbers of a policy,
        reward or divergence become columns; `<key>_stderr` is shown with `<key>`.
      samples: [{prompt, responses: [{source, text, golden, rewards: {recipe: nats}, length: tokens}]}].
      training_curves: {stage: {metric: {"step": [...], "value": [...]}}}.

    Returns:
      The path of index.html.
    """
    directory = paths.of(directory)
    directory.mkdir(parents=True, exist_ok=True)
    plots = draw_all(results, training_curves or {})
    for plot in plots:
        for suffix, image in (("", plot.light), ("-dark", plot.dark)):
            paths.write(directory / f"{plot.name}{suffix}.png", lambda file, image=image: file.write(image))
    path = directory / "index.html"
    paths.write(path, lambda file: file.write(_page(results, samples, plots).encode()))
    return os.fspath(path)


def _page(results: Mapping, samples: Sequence[Mapping], plots: list[Plot]) -> str:
    title = str(results.get("title") or "irl_jax report")
    training = [plot for plot in plots if plot.name.startswith("training-")]
    figures = [plot for plot in plots if plot not in training]
    sections = [
        Section("policies", "Policies", _policies(results)),
        Section("rewards", "Rewards", _rewards(results)),
        Section("paired", "Paired comparisons", _paired(results)),
        Section("figures", "Figures", _figures(figures)),
        Section("divergences", "Divergences from the demonstrator", _divergences(results)),
        Section("samples", "Samples side by side", _samples(samples)),
        Section("training", "Training", _figures(training) + _timing(results)),
        Section("settings", "Settings", _settings(results)),
    ]
    sections = [section for section in sections if section.body]
    contents = "".join(f'<li><a href="#{s.anchor}">{s.title}</a></li>' for s in sections)
    body = "".join(f'<section id="{s.anchor}" aria-labelledby="{s.anchor}-title"><h2 id="{s.anchor}-title">{s.title}</h2>'
                   f"{s.body}</section>\n" for s in sections)
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{_escape(title)}</title>'
            '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
            f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head>\n<body><header><h1>{_escape(title)}</h1>'
            f'{_headline(results)}<nav aria-label="Contents"><ul>{contents}</ul></nav></header>\n'
            f"<main>\n{body}</main></body></html>\n")


def _escape(value) -> str:
    return html.escape(str(value), quote=True)


def format_number(value, stderr=None, digits: int | None = None) -> str:
    """A number to the precision that its size, or its standard error, deserves: "0.713 ± 0.012"; a dash where missing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or not isinstance(value, (int, float)) or math.isnan(value):
        return MISSING if value is None or isinstance(value, float) else str(value)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    error = number(stderr)
    if digits is None and value and abs(value) < 5e-4 and not math.isfinite(error):
        return f"{value:.1e}".replace("-", "−")
    if digits is None:
        digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    text = f"{value:,.{digits}f}".replace("-", "−")
    return f"{text} ± {error:.{digits}f}" if math.isfinite(error) else text


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A table whose first column names the rows; None of the rows, no table. Cells may be text, numbers or Cells."""
    if not rows:
        return ""
    lines = []
    for name, *cells in rows:
        shown = "".join(f'<td class="text">{_escape(cell)}</td>' if isinstance(cell, str) else
                        f"<td>{_escape(format_number(*cell) if isinstance(cell, Cell) else format_number(cell))}</td>"
                        for cell in cells)
        lines.append(f'<tr><th scope="row">{_escape(name).replace("/", "/<wbr>")}</th>{shown}</tr>')
    columns = "".join(f'<th scope="col">{_escape(column)}</th>' for column in head)
    return (f'<div class="scroll" role="region" tabindex="0" aria-label="{_escape(caption)}"><table><caption>'
            f'<span>{_escape(caption)}</span></caption><thead><tr>{columns}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>')


def _number_table(caption: str, first: str, rows: Mapping[str, Mapping], known: Sequence[tuple[str, str, str]], skip=()) -> str:
    """Rows of named numbers: the known (key, label, stderr key) first, then whatever other numbers the rows have."""
    rows = {name: numbers or {} for name, numbers in rows.items()}
    used = {key for column in known for key in column[::2]} | set(skip)
    keys = dict.fromkeys(key for numbers in rows.values() for key, value in numbers.items()
                         if isinstance(value, (int, float)) and key not in used)
    others = [(key, LABELS.get(key, key.replace("_", " ") if known else key), f"{key}_stderr") for key in keys if not (
        key.endswith("_stderr") and (key.removesuffix("_stderr") in keys or key.removesuffix("_stderr") in used))]
    columns = [c for c in [*known, *others] if any(numbers.get(c[0]) is not None for numbers in rows.values())]
    return _table(caption, [first] + [label for _, label, _ in columns],
                  [[name] + [Cell(numbers.get(key), numbers.get(error)) for key, _, error in columns]
                   for name, numbers in rows.items()])


def _headline(results: Mapping) -> str:
    """Golden of the policies and of best-of-16, at a glance."""
    golden, policies = results.get("golden") or {}, results.get("policies") or {}
    cards = [(name, numbers.get("golden_mean"), numbers.get("golden_stderr")) for name, numbers in policies.items() if numbers]
    best = []
    for recipe, numbers in (results.get("rewards") or {}).items():
        rows = (numbers or {}).get("best_of_n") or []
        if recipe not in CONTROLS and rows:
            row = min(rows, key=lambda r: abs(r["n"] - 16))
            best.append((f"best-of-{row['n']} by {recipe}", row.get("golden"), row.get("stderr")))
    cards, best = ([card for card in some if math.isfinite(number(card[1]))] for some in (cards, best))
    more = len(cards[CARDS[0]:]) + len(best[CARDS[1]:])
    cards = cards[: CARDS[0]] + best[: CARDS[1]]
    shown = "".join(f"<div><dt>{_escape(name)}</dt><dd>{format_number(value)}"
                    + (f" <small>± {number(error):.3f}</small>" if math.isfinite(number(error)) else "") + "</dd></div>"
                    for name, value, error in cards)
    accuracy = golden.get("heldout_accuracy")
    judge = {"testbed": "exact, by the testbed", "classifier": "by a text classifier", "hf_reward": "by a reward model",
             "none": "none: nothing was judged"}.get(
        golden.get("name"), str(golden.get("name") or "not given"))
    if accuracy is not None:
        judge += f", held-out accuracy {format_number(accuracy)}"
    seed = f" Seed {_escape(results['seed'])}." if results.get("seed") is not None else ""
    note = "" if not shown else f" Below: {_escape(golden_label(results))}, mean ± one standard error over prompts." + (
        f" {more} more stand in the tables." if more else "")
    return (f'<p class="soft">Golden reward: {_escape(judge)}; no training step sees it.{seed}{note}</p>'
            + (f'<dl class="cards">{shown}</dl>' if shown else ""))


def _policies(results: Mapping) -> str:
    policies = {name: numbers or {} for name, numbers in (results.get("policies") or {}).items()}
    known = [("golden_mean", golden_label(results), "golden_stderr"), ("length_mean", "length (tokens)", "length_stderr"),
             ("kl_to_sft", "KL to sft (nats/sequence)", "kl_to_sft_stderr"), ("distinct_2", "distinct-2 (share)", ""),
             ("n", "prompts", "")]
    rewards = {name: numbers["rewards"] for name, numbers in policies.items() if numbers.get("rewards")}
    return (_number_table("Each policy on the evaluation prompts; ± is one standard error over prompts.", "policy",
                          policies, known)
            + _number_table("Mean reward of each policy's responses (logit, nats), a column a reward.", "policy", rewards, []))


def _rewards(results: Mapping) -> str:
    rewards = {name: numbers or {} for name, numbers in (results.get("rewards") or {}).items()}
    known = [("heldout_auc", "held-out AUC", "heldout_auc_stderr"),
             ("spearman_golden", "Spearman with golden, within prompts", "spearman_golden_stderr"),
             ("spearman_length", "Spearman with length, within prompts", "spearman_length_stderr"),
             ("pair_accuracy", "accuracy on preference pairs", "pair_accuracy_stderr")]
    quality = _number_table("Learnt rewards, then controls (log_ratio, length, random, golden).", "reward", rewards, known)
    curves = {name: {row["n"]: row for row in numbers.get("best_of_n") or []} for name, numbers in rewards.items()}
    ns = sorted({n for rows in curves.values() for n in rows})
    chosen = [n for n in BEST_OF if n in ns] or ns[-1:]

    def best(columns, wins):
        return [[name] + [Cell(rows.get(n, {}).get("golden"), rows.get(n, {}).get("stderr")) for n in columns]
                + [Cell(rows.get(n, {}).get("win_rate"), rows.get(n, {}).get("win_rate_stderr")) for n in wins]
                for name, rows in curves.items() if rows]

    table = _table(f"Best-of-n: {golden_label(results)} of the sft sample that each reward picks, and its win rate over one sft "
                   "sample (ties half); ± is one standard error over prompts.",
                   ["reward"] + [f"best-of-{n}" for n in chosen] + [f"win rate, n = {n}" for n in chosen], best(chosen, chosen))
    every = _table("Golden reward of best-of-n at every n.", ["reward"] + [f"n = {n}" for n in ns], best(ns, []))
    tilting = [[f"{name}, β = {row['beta']:g}", Cell(row.get("kl"), row.get("kl_stderr")),
                Cell(row.get("golden"), row.get("stderr")), row.get("ess"), bool(row.get("trusted", True))]
               for name, numbers in rewards.items() for row in numbers.get("tilting") or []]
    tilted = _table("Sft samples weighted by exp(h/β): the optimum of the KL-regularised objective, without reinforcement "
                    "learning.", ["reward", "KL to sft (nats/sequence)", golden_label(results), "effective samples a prompt",
                                  "trusted"], tilting)
    return quality + _leak_check(rewards) + table + _ensembles(results) + _details("Every n", every) + _details("Tilting", tilted)


def _ensembles(results: Mapping) -> str:
    """The members of each ensemble, and best-of-n that stops where they disagree beside the plain one."""
    ensembles = {name: numbers for name, numbers in (results.get("rewards") or {}).items() if (numbers or {}).get("members")}
    members = {f"{name}, member {i}": member for name, numbers in ensembles.items() for i, member in enumerate(numbers["members"], start=1)}
    known = [("heldout_auc", "held-out AUC", "heldout_auc_stderr"),
             ("spearman_golden", "Spearman with golden, within prompts", "spearman_golden_stderr")]
    agreed = {name: numbers.get("best_of_agreed") for name, numbers in ensembles.items()}
    rows = [[f"{name}, best of up to {row['max_n']}", Cell(row.get("golden"), row.get("stderr")),
             Cell(row.get("plain_golden"), row.get("plain_stderr")), Cell(row.get("mean_n"), digits=1)]
            for name, row in agreed.items() if row]
    return _number_table("Members of the ensembles, one by one.", "reward", members, known) + _table(
        "Best-of-n that goes on to more samples only while the members agree on the gain, and without stopping, on the same samples.",
        ["reward", golden_label(results), "without stopping", "samples looked at"], rows)


def _leak_check(rewards: Mapping) -> str:
    """By Neyman and Pearson, no reward separates sft from init better than their exact log-ratio, up to noise."""
    gaps = {name: numbers["auc_minus_log_ratio"] for name, numbers in rewards.items() if numbers.get("auc_minus_log_ratio")}
    return "".join(f"<p>Held-out AUC of {_escape(name)} minus that of the exact log-ratio, which is the best there is: "
                   f"{format_number(gap.get('difference'), gap.get('stderr'))}, z = {format_number(gap.get('z'), digits=1)}.</p>"
                   for name, gap in gaps.items())


def _paired(results: Mapping) -> str:
    rows = [[row["name"], Cell(row.get("difference"), row.get("stderr")), Cell(row.get("z"), digits=1), row.get("n")]
            for row in results.get("paired") or []]
    head = ["comparison", "difference", "z", "prompts"]
    shown = _table("Differences on the same prompts, in golden reward unless the name says otherwise; z is the difference over "
                   "its standard error.", head, rows[:OPEN_COMPARISONS])
    rest = rows[OPEN_COMPARISONS:]
    return shown + _details(f"{len(rest)} more comparisons", _table("Further differences on the same prompts.", head, rest))


def _divergences(results: Mapping) -> str:
    known = [("forward_kl", "forward KL(demo‖policy) (nats/sequence)", "forward_kl_stderr"),
             ("reverse_kl", "reverse KL(policy‖demo) (nats/sequence)", "reverse_kl_stderr"),
             ("jensen_shannon", "Jensen-Shannon (nats, at most 0.693)", "jensen_shannon_stderr")]
    return _number_table("From exact log-probabilities of the demonstrator, and from the kinds of sentences responses are made of. The "
                         "reverse KL counts mostly tokens that the demonstrator writes only by noise.", "policy",
                         results.get("divergences") or {}, known)


def _figures(plots: Sequence[Plot]) -> str:
    shown = []
    for plot in plots:
        light, dark = (f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in (plot.light, plot.dark))
        width, height = (int.from_bytes(plot.light[at : at + 4], "big") for at in (16, 20))  # of the PNG's header
        shown.append(f"<figure><h3>{_escape(plot.title)}</h3><picture>"
                     f'<source media="(prefers-color-scheme:dark)" srcset="{dark}">'
                     f'<img src="{light}" width="{width * 96 // DPI}" height="{height * 96 // DPI}" alt="{_escape(plot.alt)}">'
                     f"</picture><figcaption>{_escape(plot.caption)}</figcaption></figure>")
    return f'<div class="figures">{"".join(shown)}</div>' if shown else ""


def _details(summary: str, body: str) -> str:
    return f"<details><summary><h3>{_escape(summary)}</h3></summary>{body}</details>" if body else ""


def _samples(samples: Sequence[Mapping]) -> str:
    shown = [_sample(index, sample) for index, sample in enumerate(samples, start=1)]
    rest = "".join(shown[OPEN_SAMPLES:])
    return "".join(shown[:OPEN_SAMPLES]) + _details(f"{len(shown) - OPEN_SAMPLES} more prompts", rest)


def _sample(index: int, sample: Mapping) -> str:
    cards = []
    for response in sample.get("responses") or []:
        facts = [("golden", response.get("golden")), *(response.get("rewards") or {}).items(), ("tokens", response.get("length"))]
        items = "".join(f"<li>{_escape(name)} {format_number(value)}</li>" for name, value in facts
                        if value is not None and name != "length")  # that control is the tokens again
        cards.append(f'<div class="response"><h4>{_escape(response.get("source", ""))}</h4>'
                     f'<p dir="auto">{_escape(response.get("text", ""))}</p><ul>{items}</ul></div>')
    return (f'<article><h3>Prompt {index}</h3><p class="prompt" dir="auto">{_escape(sample.get("prompt", ""))}</p>'
            f'<div class="responses">{"".join(cards)}</div></article>')


def _timing(results: Mapping) -> str:
    known = [("seconds", "wall-clock (s)", ""), ("compile_seconds", "of which compiling (s)", ""),
             ("tokens_per_second", "tokens per second", "")]
    return _number_table("Time of each stage.", "stage", results.get("timing") or {}, known)


def _settings(results: Mapping) -> str:
    rows = list(_flat(results.get("settings") or {}))
    return _details(f"All {len(rows)} settings", _table("The resolved config.", ["setting", "value"], rows)) if rows else ""


def _flat(tree: Mapping, prefix: str = ""):
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield [f"{prefix}{key}", re.sub(r"^$", "(empty)", ", ".join(map(str, value)) if isinstance(value, (list, tuple))
                                            else str(value))]
