"""What a finished run shows beyond its results.json: python -m benchmarks.evidence.analyse WORKDIR [--out=FILE]

Probes of what the rewards learnt, matched pairs, the shift along the rollout, policies judged by every reward, and whether an ensemble's
disagreement foresees over-optimisation. The workdir is read and never written; nothing is trained and nothing sampled but the testbed's
demonstrator. The same workdir gives the same numbers.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np

from benchmarks.evidence import disagreement, matched, probes, shift, surface
from irl_jax import artifacts, variants, workdir
from irl_jax.config import GROUPS
from irl_jax.errors import UserError
from irl_jax.evaluation import golden, metrics
from irl_jax.stages import context as contexts
from irl_jax.stages import evaluate, judging, recipe_data, reward_model, sampling
from irl_jax.types import Example

SFT_SAMPLES = 32  # of sft a prompt, at most, for probes within prompts and matched pairs
ROLE_SAMPLES = 8  # of each role a prompt, at most, along the rollout, for all rewards' judgement and for what disagreement is usual
CLOSED = ("log_ratio", "length")  # rewards without training, beside the learnt ones
DIGITS = 6  # that numbers are rounded to


def analyse(path) -> dict:
    """Everything that the evidence needs from one finished run.

    Args:
      path: the workdir.

    Returns:
      JSON-ready, without NaN (None instead), numbers rounded to six digits:
      probes         {reward: `probes.probe` on the held-out examples of its recipe (init_sft's for "log_ratio" and "length"); "on_sft":
                     `probes.within_prompts` on sft's evaluation samples; log_ratio_auc, length_auc, golden_auc: of those on the same
                     held-out examples}
      golden_probe   `probes.within_prompts` of golden
      matched_pairs  {reward: {feature: `matched.effect`, "golden": ...}} of sft's evaluation samples; matched_by: what a pair is
      shift          {role: `shift.along`} of init, sft, demo and every trained policy
      judged_by      {role: {reward: mean over its responses, in standard deviations of sft's samples from their mean}}, golden among the
                     rewards; judged_by_stderr: over prompts
      disagreement   {role: `disagreement.over_training`}
      used           how many prompts and responses of each kind were read

    Parts that do not apply, golden's without a judge among them, are None.

    Raises:
      UserError: no finished run is there.
    """
    if not (pathlib.Path(path) / "results.json").is_file():
        raise UserError(f"{path}: no finished run (it has no results.json); let `irl_jax run` come to its end first")
    context = contexts.Context(workdir.read_config(path), contexts.Reader(path))
    with tempfile.TemporaryDirectory() as folder:
        return rounded(metrics.jsonable(_analyse(context, judge_of(context, pathlib.Path(folder)))))


def judge_of(context, folder: pathlib.Path) -> golden.Judge | None:
    """The run's golden judge, or None; a classifier that the run kept is copied into the folder, so that the workdir is only read."""
    if context.config.golden.kind == "none":
        return None
    if context.config.golden.kind == "hf_reward":
        return reward_model.make_judge(context.config, context.mesh, context.turns)
    for kept in (context.workdir.path / "evaluate").glob("golden-*.npz"):
        shutil.copy(kept, folder)
    return golden.make_judge(context.config, context.world, folder)


def _analyse(context, judge) -> dict:
    sft, table = samples_of(context, judge, "sft", SFT_SAMPLES), surface.Frequencies.of(context)
    features = {name: sft.by_prompt(values) for name, values in surface.describe(table, *sft.texts, sft.examples).items()}
    rewards = [*(method.name for method in variants.methods(context.config, "reward")), *CLOSED]
    values = {name: sft.by_prompt(sft.reward(name)) for name in rewards}
    gold = sft.by_prompt(sft.golden) if judge else None
    several = judge is not None and len(sft.examples) > len(sft.first_of_each_prompt())
    pairs, pairs_by = matched.of_rewards(values, features, gold) if several else (None, None)
    sets, places, curves = roles_of(context, judge), shift.positions(context.config.data.max_response_tokens), {}
    for role, responses in sets.items():
        logprobs = shift.token_logprobs(context, responses, role)
        curves[role] = shift.along(context, judge, responses, logprobs, role, places)
        sums = {name: np.array([own.sum() for own in logprobs[name]]) for name in ("init", "sft")}
        sets[role] = judging.Judged(context, judge, responses.examples, sums)
    judged, judged_stderr = judged_by({**sets, "sft": sft}, sft, [*rewards, *(["golden"] if judge else [])])
    out = {
        "probes": _probes(context, judge, table, values, features),
        "golden_probe": probes.within_prompts(gold, features) if judge else None,
        "matched_pairs": pairs, "matched_by": pairs_by, "shift": curves, "judged_by": judged, "judged_by_stderr": judged_stderr,
        "disagreement": disagreement.of_policies(context, judge, sets["sft"]),
    }
    count = lambda responses: {"prompts": len(responses.first_of_each_prompt()), "responses": len(responses.examples)}
    return out | {"used": {"sft_samples": count(sft), "roles": {role: count(responses) for role, responses in sets.items()}}}


def samples_of(context, judge, role: str, most: int) -> judging.Judged:
    """A role's evaluation samples, `most` a prompt at most: the first, for the samples of a prompt are drawn alike and kept as drawn."""
    loaded = sampling.load(context, role, "eval")
    each = loaded["tokens"].shape[1]
    return judging.Judged(context, judge, [e for i, e in enumerate(loaded["examples"]) if i % each < most])


def roles_of(context, judge) -> dict[str, judging.Judged]:
    """{role: responses} of init, sft, demo and every trained policy."""
    policies = [method.role for group in GROUPS if group != "reward" for method in variants.methods(context.config, group)]
    sets = {role: samples_of(context, judge, role, ROLE_SAMPLES) for role in ("init", "sft", *policies)}
    demo = demonstrator(context, judge, len(sets["sft"].examples) // len(context.evaluation))
    return {"init": sets["init"], "sft": sets["sft"], **({"demo": demo} if demo.examples else {}),
            **{role: sets[role] for role in policies}}


def demonstrator(context, judge, samples: int) -> judging.Judged:
    """The demonstrator's responses to the evaluation prompts: `samples` a prompt of the testbed's law, else those of the data, which may
    be to training prompts (`evaluate.demonstrations_of`)."""
    if context.world is None:
        return evaluate.demonstrations_of(context, judge)
    prompts = [(number, example.prompt) for number, example in enumerate(context.evaluation) for _ in range(samples)]
    drawn = context.world.demonstrate([context.text(prompt) for _, prompt in prompts], seed=context.config.seed)
    limit = context.config.data.max_response_tokens
    return judging.Judged(context, judge, [Example(prompt, np.asarray(ids[:limit], np.int32), len(ids) <= limit, number)
                                           for (number, prompt), ids in zip(prompts, drawn, strict=True)])


def _probes(context, judge, table, values: dict, features: dict) -> dict:
    """The rows of "probes"; values and features are those of sft's samples, [P, M]."""
    methods = {method.name: method for method in variants.methods(context.config, "reward")}
    known: dict = {}  # a recipe's held-out examples with all that does not depend on the reward
    out = {}
    for name in values:
        method = methods.get(name)
        recipe, own = (method.recipe, method.config.reward.heldout_fraction) if method else ("init_sft", None)
        if (recipe, own) not in known:
            known[recipe, own] = _heldout(context.variant(method) if method else context, judge, table, recipe)
        heldout, labels, groups, described, rivals = known[recipe, own]
        out[name] = probes.probe(heldout.reward(name), labels, described, groups) | rivals | {
            "on_sft": probes.within_prompts(values[name], features)}
    return out


def _heldout(context, judge, table, recipe: str) -> tuple:
    """(responses, labels, prompts, features, {"log_ratio_auc", ...}) of a recipe's held-out examples."""
    parts = recipe_data.data_of(context, recipe)[2]
    groups = recipe_data.prompt_numbers(parts)
    heldout = judging.Judged(context, judge, [*parts[0], *parts[1]])
    rivals = {}
    for name in (*CLOSED, *(["golden"] if judge else [])):
        rivals[f"{name}_auc"], rivals[f"{name}_auc_stderr"] = metrics.auc(*np.split(heldout.reward(name), [len(parts[0])]), groups)
    labels = np.repeat([1, 0], [len(parts[0]), len(parts[1])])
    return heldout, labels, np.concatenate(groups), surface.describe(table, *heldout.texts, heldout.examples), metrics.jsonable(rivals)


def judged_by(sets: dict, sft: judging.Judged, rewards) -> tuple[dict, dict]:
    """({role: {reward: mean}}, {role: {reward: its standard error over prompts}}), in units of sft's samples: their mean is 0, their
    standard deviation 1; None for a reward that is the same for all of them."""
    means: dict = {role: {} for role in sets}
    errors: dict = {role: {} for role in sets}
    for name in rewards:
        centre, spread = sft.reward(name).mean(), sft.reward(name).std()
        for role, judged in sets.items():
            values = (judged.by_prompt(judged.reward(name)) - centre) / (spread if spread > 1e-12 else np.nan)
            means[role][name], errors[role][name] = metrics.mean_stderr(values)
    return means, errors


def rounded(value):
    """Nested containers with floats to `DIGITS` significant digits, and none below 1e-12, so that records stay small."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{round(value, 2 * DIGITS):.{DIGITS}g}") if isinstance(value, float) else value


def main(argv) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.analyse", description=__doc__.splitlines()[0])
    parser.add_argument("workdir", help="a finished run")
    parser.add_argument("--out", help="the file to write; without it the numbers are printed")
    arguments = parser.parse_args(argv)
    try:
        found = analyse(arguments.workdir)
        if arguments.out:
            artifacts.write_json(arguments.out, found)
        else:
            print(json.dumps(found, indent=1, allow_nan=False))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
