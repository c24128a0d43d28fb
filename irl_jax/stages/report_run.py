"""The report's parts about the whole run: what was run, the headline table, time, settings."""

from __future__ import annotations

import math
from collections.abc import Mapping

from irl_jax.config import CONTROLS
from irl_jax.overrides import leaves
from irl_jax.stages.evaluated import BEST
from irl_jax.stages.model_card import changed_settings
from irl_jax.stages.page import Cell, Raw, details, escape, facts, format_number, named, number_table, recipe_class, table
from irl_jax.stages.plot_style import golden_label, number

HEADLINE = 12, 6  # policies and best-of-n's in the headline table; the tables below it have the others
CLEAR = 2.0  # standard errors that make a difference clear
COMPARED = 16  # n of the headline's best-of-n, or the nearest measured
_JUDGES = {"testbed": "exact, by the testbed", "classifier": "by a text classifier", "hf_reward": "by a reward model",
           "none": "none: nothing was judged"}


def lead(results: Mapping) -> str:
    """One line under the title: who judges."""
    golden = results.get("golden") or {}
    judge = _JUDGES.get(golden.get("name") or "none", str(golden.get("name")))
    if golden.get("heldout_accuracy") is not None:
        judge += f", held-out accuracy {format_number(golden['heldout_accuracy'])}"
    return f'<p class="soft">Golden reward: {escape(judge)}; no training step sees it.</p>'


def what_was_run(results: Mapping) -> str:
    """Data, model, methods, versions, commit and seconds in brief, then the settings that are not defaults."""
    settings, run = results.get("settings") or {}, results.get("run") or {}
    timing = [row or {} for row in (results.get("timing") or {}).values()]
    spent = ([number(row.get(key)) for row in timing] for key in ("seconds", "compile_seconds"))
    seconds, compiling = (math.fsum(x for x in some if math.isfinite(x)) for some in spent)
    versions = ", ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items())
    learnt = [name for name in results.get("rewards") or {} if name not in CONTROLS]
    rows = [("Data", _data(settings.get("data") or {})), ("Model", _model(settings)), ("Rewards learnt", ", ".join(learnt)),
            ("Policies", ", ".join(results.get("policies") or {})), ("Evaluation", _evaluation(results, settings)),
            ("Seed", "" if results.get("seed") is None else str(results["seed"])), ("Versions", versions),
            ("Commit", str(run.get("git_commit") or "").replace("-dirty", ", with changes that were not committed")),
            ("Time", f"{seconds:,.0f} s, of which {compiling:,.0f} s compiling" if seconds else "")]
    return facts(rows) + _changed(settings)


def _data(data: Mapping) -> str:
    if not data.get("source"):
        return ""
    capped = f", at most {data['max_demonstrations']:,} demonstrations" if data.get("max_demonstrations") else ""
    limits = (f"; prompts of at most {data['max_prompt_tokens']} tokens, responses of {data['max_response_tokens']}"
              if "max_prompt_tokens" in data and "max_response_tokens" in data else "")
    return ("the embedded testbed" if data["source"] == "testbed" else str(data["source"])) + capped + limits


def _model(settings: Mapping) -> str:
    model, adapter = settings.get("model") or {}, settings.get("adapter") or {}
    if model.get("path"):
        text = str(model["path"])
    elif "architecture" in model:
        text = f"{model['architecture']} from scratch, {model.get('num_layers')} layers, width {model.get('width')}"
    else:
        return ""
    rank = adapter.get("rank")
    return text + ("" if rank is None else f"; LoRA of rank {rank}" if rank else "; whole trunks are trained")


def _evaluation(results: Mapping, settings: Mapping) -> str:
    prompts = ((results.get("policies") or {}).get("sft") or {}).get("n")
    samples = settings.get("sample") or {}
    if prompts is None or "eval_samples" not in samples:
        return ""
    temperature, mass = samples.get("temperature", 1), samples.get("top_p", 1)
    told = f"{prompts} prompts, {samples['eval_samples']} samples of sft and {samples.get('policy_samples')} of other policies a prompt"
    if (temperature, mass) != (1, 1):
        told += f"; drawn at temperature {temperature:g} and top-p {mass:g}, the KLs then mean log-ratios of the models on such samples"
    return told


def _changed(settings: Mapping) -> str:
    """The settings that differ from the defaults."""
    rows = [[key, _spelled(value)] for key, value in changed_settings(settings).items()]
    return details(f"{len(rows)} settings that are not the default",
                   table("Settings that differ from irl_jax/config.py.", ["setting", "value"], rows)) if rows else ""


def baseline(results: Mapping) -> str:
    """A paragraph on golden of sft at its best temperature, and how far rewards and policies exceed it; "" if not judged."""
    name = results.get("baseline")
    row = (results.get("policies") or {}).get(name) or {}
    if not name or row.get("golden_mean") is None:
        return ""
    found = robust_of(results)
    text = (f"Without any reward, the best is <b>{named(name)}</b>: golden {format_number(row['golden_mean'])} ± "
            f"{format_number(row.get('golden_stderr'))}. A reward or a policy is worth its training only above that.")
    if found:
        text += " " + _beside(results, f"best-of-{COMPARED} by robust at T = {found['temperature']:g}")
    others = [row for row in results.get("paired") or [] if row["name"].endswith(f" - {BEST}") and "by robust" not in row["name"]]
    learnt = [row for row in others if not any(f"by {control} " in row["name"] for control in CONTROLS) and number(row.get("z")) > CLEAR]
    clear = sorted(learnt, key=lambda row: -number(row["difference"]))[:3]
    told = ", ".join(f"{escape(row['name'].partition(' - ')[0])} ({number(row['difference']):+.3f} ± {number(row['stderr']):.3f})"
                     for row in clear)
    text += f" Above it by {CLEAR:g} standard errors or more: {told}." if clear else (
        f" No other learnt reward and no policy is above it by {CLEAR:g} standard errors." if others else "")
    return f"<p>{text}</p>" + (f'<p class="soft">{escape(found["text"])}</p>' if found else "")


def robust_of(results: Mapping) -> dict:
    """The terms of `robust`, with a sentence about them; {} if the run has none."""
    found = results.get("robust") or {}
    if "terms" not in found:
        return {}
    made = " + ".join(f"{number(term['weight']):.3g} {term['reward']}" for term in found["terms"])
    text = f"robust = {made}, with samples at temperature {found['temperature']:g}." if made else (
        f"The gate of robust is closed: it chooses nothing, and stands for sft at temperature {found['temperature']:g}.")
    return {**found, "text": " ".join([text, *(f"{reason}." for reason in found.get("reasons") or [])])}


def _beside(results: Mapping, name: str) -> str:
    row = next((row for row in results.get("paired") or [] if row["name"] == f"{name} - {BEST}"), None)
    if row is None or not math.isfinite(number(row.get("stderr"))):
        return ""
    apart = "above" if number(row["z"]) > CLEAR else "below" if number(row["z"]) < -CLEAR else "not told apart from"
    return f"{escape(name[0].upper() + name[1:])} is {apart} it: {number(row['difference']):+.3f} ± {number(row['stderr']):.3f}."


def headline(results: Mapping) -> str:
    """One row per policy and per learnt reward's best-of-16 (or nearest n): golden, golden above sft's, win rate, KL, length."""
    policies = {name: row or {} for name, row in (results.get("policies") or {}).items()}
    paired = {row["name"]: row for row in results.get("paired") or []}
    rows = [[name, row.get("golden_mean"), row.get("golden_stderr"), paired.get(f"{name} - sft") or {}, None,
             Cell(row.get("kl_to_sft"), row.get("kl_to_sft_stderr")), Cell(row.get("length_mean"), digits=1)]
            for name, row in policies.items()]
    best = []
    for recipe, numbers in (results.get("rewards") or {}).items():
        at = min((numbers or {}).get("best_of_n") or [], key=lambda row: abs(row["n"] - COMPARED), default=None)
        if at is not None and recipe not in CONTROLS:
            name = f"best-of-{at['n']} by {recipe}"
            bound = Raw(escape(f"at most {format_number(at.get('kl_bound'))}")) if number(at.get("kl_bound")) >= 0 else None
            best.append([name, at.get("golden"), at.get("stderr"), paired.get(f"{name} - sft") or {}, Cell(at.get("win_rate"),
                         at.get("win_rate_stderr")), bound, None])
    more = len(rows[HEADLINE[0] :]) + len(best[HEADLINE[1] :])
    rows = rows[: HEADLINE[0]] + best[: HEADLINE[1]]
    spans = [(number(row[1]), number(row[2])) for row in rows]
    known = [value + side * (error if math.isfinite(error) else 0.0) for value, error in spans if math.isfinite(value) for side in (-1, 1)]
    shown = [[name, Cell(value, error), _strip(name, number(value), number(error), known), Cell(less.get("difference"), less.get("stderr")),
              Cell(less.get("z"), digits=1), wins, kl, length] for name, value, error, less, wins, kl, length in rows]
    head = ["policy", golden_label(results), "", "less sft's", "z", "win rate over sft", "KL to sft (nats/sequence)", "length (tokens)"]
    keep = [0, *(i for i in range(1, len(head)) if any(_says(row[i]) for row in shown))]
    note = f" {more} more stand in the tables below." if more else ""
    return table("Mean ± one standard error over prompts; z is the difference from sft on the same prompts over its standard error." + note,
                 [head[i] for i in keep], [[row[i] for i in keep] for row in shown])


def _says(cell) -> bool:
    return bool(cell.html) if isinstance(cell, Raw) else isinstance(cell, Cell) and math.isfinite(number(cell.value))


def _strip(name: str, value: float, error: float, known: list[float]) -> Raw:
    """A dot on the scale of all `known` values, with a bar of one standard error; empty without a value."""
    if not math.isfinite(value):
        return Raw("")
    low, high = min(known), max(known)
    x, half = (100 * (value - low) / (high - low) if high > low else 50.0), 0.0
    if high > low and math.isfinite(error):
        half = 100 * error / (high - low)
    return Raw(f'<svg class="strip {recipe_class(name)}" viewBox="-4 0 108 12" preserveAspectRatio="none" aria-hidden="true">'
               f'<path d="M0 6H100" stroke="currentColor" stroke-width=".6" opacity=".35"/>'
               f'<path d="M{x - half:.1f} 6H{x + half:.1f}" stroke="currentColor" stroke-width="2.4"/>'
               f'<ellipse cx="{x:.1f}" cy="6" rx="3.4" ry="3.9" fill="currentColor"/></svg>')


def timing(results: Mapping) -> str:
    """Seconds, compile time and speed of each stage that did something."""
    known = [("seconds", "wall-clock (s)", ""), ("compile_seconds", "of which compiling (s)", ""),
             ("tokens_per_second", "tokens per second", "")]
    rows = {stage: row for stage, row in (results.get("timing") or {}).items() if number((row or {}).get("seconds")) >= 0.05}
    return number_table("Time of each stage.", "stage", rows, known)


def all_settings(results: Mapping) -> str:
    """The whole resolved config, folded."""
    rows = [[key, _spelled(value)] for key, value in leaves(results.get("settings") or {}).items()]
    return details(f"All {len(rows)} settings", table("The resolved config.", ["setting", "value"], rows)) if rows else ""


def _spelled(value) -> str:
    """A setting's value in a cell."""
    return (", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)) or "(empty)"
