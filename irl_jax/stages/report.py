"""The report: one self-contained page of tables, figures and samples, made only from results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from irl_jax import distributed, paths, workdir
from irl_jax.artifacts import read_json, read_jsonl, write_json
from irl_jax.stages import STAGES, evaluated, report_run, report_samples, report_tables, trust
from irl_jax.stages.page import Section, figures, page
from irl_jax.stages.plots import Plot, draw_all

TIMED = tuple(stage for stage in STAGES if stage != "report")


class Material(NamedTuple):
    """A run to show: results.json with the figures' other data, samples side by side, and training curves."""

    results: dict
    samples: list
    curves: dict


def run(context) -> dict:
    """Adds the stages' timing to W/results.json and draws W/report from what `evaluate` left."""
    path = context.workdir.path
    results = evaluated.read(path)
    finished = [stage for stage in TIMED if context.workdir.is_done(stage)]
    results["timing"] = {stage: context.workdir.timing(stage) for stage in finished}
    material = read(path)
    write_json(path / "results.json", results)
    title = "irl_jax: " + ("the embedded testbed" if context.is_testbed else context.config.data.source)
    everything = {**material.results, **results, "settings": context.config.to_dict(), "title": title,
                  "run": read_json(path / workdir.CONFIG, workdir.WRITTEN)}
    distributed.primary_first(lambda: write_report(path / "report", everything, material.samples, material.curves))
    return {}


def read(path: str | os.PathLike) -> Material:
    """Reads an evaluated run from a workdir; the fields are arguments of `write_report` and `plots.draw_all`.

    Raises:
      UserError: there are no results yet, or they are damaged.
    """
    folder = paths.of(path)
    results, material = evaluated.read(folder), evaluated.material(folder)
    return Material({**results, **material}, material.get("samples") or [], _training_curves(folder))


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
      directory: the report's folder, W/report; created if missing.
      results: results.json, plus `over_training` {role: {step, reward, reward_stderr, golden, golden_stderr: lists}},
        `paired` [{name, difference, stderr, z, n}], `rewards[...]["tilting"]`, `histograms`
        {recipe: {source: {edges, counts}}}, `scatter` {recipe: {length, reward, golden}}, `settings` (the config as nested
        dicts), `run` (config.json's `versions` and `git_commit`) and `title`. If any is missing, its part of the page is left out.
        Further numbers of a policy, reward or divergence become columns; `<key>_stderr` is shown with `<key>`.
      samples: [{prompt, responses: [{source, text, golden, rewards: {recipe: nats}, length: tokens}]}].
      training_curves: {stage: {metric: {"step": [...], "value": [...]}}}.

    Returns:
      The path of index.html.
    """
    folder = paths.of(directory)
    plots = draw_all(results, training_curves or {})
    for plot in plots:
        for suffix, image in (("", plot.light), ("-dark", plot.dark)):
            paths.write(folder / f"{plot.name}{suffix}.png", lambda file, image=image: file.write(image))
    path = folder / "index.html"
    content = _content(results, samples, plots)
    paths.write(path, lambda file: file.write(content))
    return os.fspath(path)


def _content(results: Mapping, samples: Sequence[Mapping], plots: list[Plot]) -> bytes:
    training = [plot for plot in plots if plot.name.startswith("training-")]
    return page(str(results.get("title") or "irl_jax report"), report_run.lead(results), [
        Section("headline", "In short", report_run.baseline(results) + report_run.headline(results)),
        Section("run", "What was run", report_run.what_was_run(results)),
        Section("trust", "Which reward to trust", trust.section(results)),
        Section("figures", "Figures", figures([plot for plot in plots if plot not in training])),
        Section("samples", "Samples side by side", report_samples.samples(samples)),
        Section("policies", "Policies", report_tables.policies(results)),
        Section("rewards", "Rewards", report_tables.rewards(results)),
        Section("paired", "Paired comparisons", report_tables.paired(results)),
        Section("divergences", "Divergences from the demonstrator", report_tables.divergences(results)),
        Section("training", "Training", figures(training) + report_run.timing(results)),
        Section("settings", "Settings", report_run.all_settings(results)),
    ])
