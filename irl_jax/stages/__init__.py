"""The pipeline: stages in order. Each can be resumed, and they share data only through the workdir."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

from irl_jax import distributed, tracking
from irl_jax.checks import check
from irl_jax.config import GROUPS
from irl_jax.errors import UserError
from irl_jax.variants import methods
from irl_jax.workdir import Workdir

STAGES = ("pretrain", "sft", "sample", "reward", "robust", "policy", "adversarial", "dpo", "spin", "rejection", "evaluate", "report")


def run_pipeline(config, path, stages: tuple[str, ...] = (), base: str = "") -> Path | None:
    """Runs the stages that are not done yet, in the pipeline's order.

    Args:
      config: locked ConfigDict. path: the workdir. stages: which to run; () is all.
      base: where the files of config.model.path are now, if they were elsewhere when the workdir was begun.
    Returns:
      The report's path, or None.
    Raises:
      UserError: an unknown stage, a workdir of another config or begun with other inputs, or anything wrong in the input.
    """
    refuse(config, stages)
    wanted = [stage for stage in STAGES if not stages or stage in stages]
    with Workdir(path, config) as workdir:
        left = distributed.agree([stage for stage in wanted if not workdir.is_done(stage)])
        report = workdir.path / "report" / "index.html"
        if not left:
            distributed.say(f"nothing to do: {', '.join(wanted)} done already")
        else:
            _run(config, workdir, left, base)
        if report.exists():
            distributed.say(f"report: {report}")
            return report
    return None


def refuse(config, stages: tuple[str, ...] = ()) -> None:
    """Refuses unusable stages and configs before anything is written.

    Raises:
        UserError: an unknown stage, or a config that contradicts itself, its reward models, its rated texts or what is installed.
    """
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise UserError(f"--stages: unknown stage '{unknown[0]}'; one of {', '.join(STAGES)}")
    check(config)
    _check_reward_models(config)
    tracking.check(config.log)


def _check_reward_models(config) -> None:
    """Refuses unreadable reward models and rated texts now; the run would otherwise need some only at its end."""
    if config.golden.kind == "classifier":
        from irl_jax.evaluation import golden

        golden.check(config)
    if config.golden.kind == "hf_reward" or config.reward.start or any("reward.start" in line for line in config.variants):
        from irl_jax.stages import reward_model

        reward_model.check(config)


def _run(config, workdir, left, base) -> None:
    from irl_jax.stages import inputs, recipe_data, reward_model  # jax and the rest load only when there is work
    from irl_jax.stages.context import Context

    beyond = [str(n) for n in sorted(set(config.eval.best_of)) if n > config.sample.eval_samples]
    if beyond and "evaluate" in left:
        distributed.say(f"evaluate: no best-of-n for n = {', '.join(beyond)}, for sample.eval_samples = {config.sample.eval_samples}")
    workdir.note(left[0])
    context = Context(config, workdir, base)
    if left != ["report"]:  # report reads only the workdir
        inputs.hold(context)
    recipe_data.require(context, recipe_data.needed(config, left))
    if "evaluate" in left:
        reward_model.check_prompts(context)
    for stage in left:
        workdir.note(stage)
        start = time.perf_counter()
        info = importlib.import_module(f"irl_jax.stages.{stage}").run(context)
        timing = {**info, "seconds": max(time.perf_counter() - start, info.get("seconds", 0.0))}  # info has earlier sessions too
        workdir.mark_done(stage, timing)
        speed = f", {timing['tokens_per_second']:,.0f} tokens/s" if timing.get("tokens_per_second") else ""
        compiled = f", {timing['compile_seconds']:.1f} s compiling" if timing.get("compile_seconds") else ""
        if stage in GROUPS and not methods(config, stage):
            distributed.say(f"{stage}: nothing to do ({stage}.recipes is empty, and no variant is of this group)")
            continue
        distributed.say(f"{stage}: done in {timing['seconds']:.1f} s{compiled}{speed}")
