"""Evaluates policies, rewards, best-of-n and divergences with the golden reward, which no training step sees."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from irl_jax import artifacts, loop, paths, variants
from irl_jax.config import CONTROLS, GROUPS, ROBUST
from irl_jax.evaluation import best_of_n, golden, metrics
from irl_jax.stages import divergences, judging, over_training, recipe_data, reward_model, sampling, scoring, temperatures

TILTING_BETAS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
COMPARED_N = 16  # n of best-of-n in the paired comparisons
USUAL = "policy/init_sft"  # the other trained policies are compared with it at the same KL


def run(context) -> dict:
    """Writes W/results.json and the report's material, W/evaluate/report.json."""
    start, before = time.perf_counter(), context.scorer.tokens
    with loop.CompileTime() as clock:
        _evaluate(context)
    seconds = time.perf_counter() - start
    scored = (context.scorer.tokens - before) / max(seconds - clock.seconds(), 1e-9)
    return {"seconds": seconds, "compile_seconds": clock.seconds(), "tokens_per_second": scored}


def _judge(context) -> golden.Judge:
    if context.config.golden.kind == "hf_reward":
        return reward_model.make_judge(context.config, context.mesh, context.turns, context.began)
    folder = context.directory("evaluate")
    return golden.make_judge(context.config, context.world, folder if paths.is_local(folder) else None)


def _evaluate(context) -> None:
    config = context.config
    judge = None
    if config.golden.kind != "none":
        judge = _judge(context)
    controls = [control for control in config.reward.controls if judge or control != "golden"]
    ours = [ROBUST] if scoring.has_robust(context) else []
    rewards = [*(method.name for method in variants.methods(config, "reward")), *ours, *controls]
    recipes = [*config.reward.recipes, *ours, *controls]  # these score every policy's samples; variants score only sft's
    policies = [method.role for group in GROUPS if group != "reward" for method in variants.methods(config, group)]
    for role in policies:
        sampling.draw(context, role, "eval", config.sample.policy_samples)
    sets = {role: samples_of(context, judge, role) for role in ("init", "sft", *policies)}
    cold = {name: samples_of(context, judge, name) for name in (temperatures.draw(context, ("sft", *policies)) if judge else ())}
    demos = demonstrations_of(context, judge)
    if demos is not None:
        sets = {"init": sets["init"], "demo": demos, **{r: s for r, s in sets.items() if r != "init"}}
    results = {
        "schema": 1, "seed": config.seed,
        "golden": {"name": judge.name, "heldout_accuracy": judge.heldout_accuracy, "unit": judge.unit} if judge else None,
        "policies": {role: _policy_row(context, role, judged, recipes if role in sets or role.startswith("sft") else [], judge)
                     for role, judged in {**sets, **cold}.items()},
    }
    results["rewards"] = _rewards(context, judge, sets["sft"], rewards)
    results["baseline"], results["paired"] = None, []
    if judge:
        for recipe in rewards:
            results["rewards"][recipe]["best_of_n_at"] = temperatures.curves(context, recipe, cold)
        means = temperatures.golden_by_prompt({**sets, **cold}, rewards, COMPARED_N)
        artifacts.write_json(context.directory("evaluate") / "golden_by_prompt.json", means)
        results["baseline"], rows = temperatures.paired(config, means, rewards, COMPARED_N)
        results["paired"] = temperatures.differences(_paired(sets, means, rewards, policies) + rows)
    if ours:
        results["robust"] = artifacts.read_json(context.workdir.path / "robust" / "robust.json")
    results["divergences"] = divergences.of_policies(context, sets) if context.world else None
    curves = over_training.curves(context, judge, policies)
    _compare_at_kl(config, results["policies"], curves)
    results["timing"] = {}
    artifacts.write_json(context.workdir.path / "results.json", results)
    artifacts.write_json(context.directory("evaluate") / "report.json", {
        **_report_material(sets, recipes, policies, judge, cold), "over_training": curves})
    _say(context, results)


def samples_of(context, judge, name):
    """A role's samples for the evaluation prompts, judged; `name` may include a temperature (see `sampling.at`)."""
    loaded = sampling.load(context, name, "eval")
    own = loaded["logprobs"].astype(np.float64).sum(-1).reshape(-1)
    return judging.Judged(context, judge, loaded["examples"], {sampling.parted(name)[0]: own})


def demonstrations_of(context, judge):
    """The demonstrator's responses: to the evaluation prompts if the data have them, else to training prompts."""
    if context.world is not None:
        prompts = context.evaluation
        drawn = context.world.demonstrate([context.text(e.prompt) for e in prompts], seed=context.config.seed)
        limit = context.config.data.max_response_tokens
        examples = [e._replace(response=np.asarray(ids[:limit], np.int32), ended=len(ids) <= limit, source=p)
                    for p, (e, ids) in enumerate(zip(prompts, drawn, strict=True))]
    else:
        paired = context.config.data.kind == "pairs" and not context.config.data.min_rating
        answered = [example for example in context.evaluation if len(example.response)]
        examples = answered if paired else context.demonstrations[: max(200, len(context.evaluation))]
        examples = [e._replace(source=p) for p, e in enumerate(examples)]
    return judging.Judged(context, judge, examples)


def _policy_row(context, role, judged, recipes, judge):
    row = judged.summary(recipes, judge is not None)
    row["kl_to_sft"] = row["kl_to_sft_stderr"] = None
    if role == "sft":
        row["kl_to_sft"] = row["kl_to_sft_stderr"] = 0.0
    elif role != "demo" and "@" not in role:  # log-probs are the model's own, so they don't fit samples at a temperature
        ratio = judged.by_prompt(judged.logprob(role) - judged.logprob("sft")).mean(1)
        row["kl_to_sft"], row["kl_to_sft_stderr"] = metrics.mean_stderr(ratio)
    return row


def _rewards(context, judge, sft, recipes):
    """The rows of results.json's `rewards`."""
    parts = recipe_data.data_of(context, "init_sft")[2]
    heldout, positives, groups = judging.Judged(context, judge, [*parts[0], *parts[1]]), len(parts[0]), recipe_data.prompt_numbers(parts)
    pairs = _heldout_pairs(context, judge)
    gold = sft.by_prompt(sft.golden) if judge else None
    learnt = {method.name: method for method in variants.methods(context.config, "reward")}
    rows = {}
    for recipe in recipes:
        values = sft.by_prompt(sft.reward(recipe))
        on_samples = heldout.reward(recipe)
        auc, auc_stderr = metrics.auc(on_samples[:positives], on_samples[positives:], groups)
        row = {"heldout_auc": auc, "heldout_auc_stderr": auc_stderr, "auc_sft_against_init": auc, "auc_sft_against_init_stderr": auc_stderr,
               "pair_accuracy": None, "spearman_golden": None, "best_of_n": [], **_spearman("length", values, sft.by_prompt(sft.lengths))}
        if per_recipe := learnt.get(recipe):
            own = artifacts.read_json(context.directory(f"reward/{recipe}") / "heldout.json")
            row["heldout_auc"], row["heldout_auc_stderr"] = own["auc"], own["auc_stderr"]
            if per_recipe.config.reward.ensemble > 1:
                row |= _ensemble(context, recipe, own, sft, gold)
        if pairs is not None:
            chosen, rejected = np.split(pairs.reward(recipe), 2)
            row["pair_accuracy"], row["pair_accuracy_stderr"] = metrics.pair_accuracy(chosen, rejected)
        if judge:
            row |= _spearman("golden", values, gold)
            row["best_of_n"] = best_of_n.best_of_n(values, gold, context.config.eval.best_of)
            row["tilting"] = best_of_n.tilting(values, gold, TILTING_BETAS)
        rows[recipe] = row
    if {"init_sft", "log_ratio"} <= set(recipes) and sampling.law_of(context.config.sample) == sampling.MODEL:
        # Neyman-Pearson: no learnt reward separates the models' own samples better than their exact log-ratio, up to noise.
        ours, exact = (heldout.reward(recipe) for recipe in ("init_sft", "log_ratio"))
        gap = metrics.auc_difference(ours[:positives], ours[positives:], exact[:positives], exact[positives:], groups)
        rows["init_sft"]["auc_minus_log_ratio"] = gap._asdict()
    return rows


def _ensemble(context, name: str, own: dict, sft, gold) -> dict:
    """Quality of each ensemble member, and best-of-n that stops where members disagree."""
    members_ExPxM = np.stack([sft.by_prompt(values) for values in sft.members(name)])
    row: dict[str, Any] = {
        "members": [{"heldout_auc": auc} for auc in own["member_aucs"]],
        "disagreement": float(members_ExPxM.std(0).mean() / max(members_ExPxM.mean(0).std(axis=1).mean(), 1e-12))}
    if gold is not None:
        for member, values in zip(row["members"], members_ExPxM, strict=True):
            member |= _spearman("golden", values, gold)
        config = context.config.eval
        agreed = best_of_n.agreed_best_of_n(members_ExPxM, gold, config.best_of, config.agreement)
        row["best_of_agreed"] = agreed and agreed._asdict()
    return row


def _compare_at_kl(config, policies: dict, curves: dict) -> None:
    """Adds `at_same_kl` to each trained policy: its golden minus the baseline's during training at the same KL to sft.

    Does nothing if samples follow another law than in training: their golden and log-ratio don't compare with the curve.
    """
    if USUAL not in curves:
        return
    own = variants.find(config, USUAL).config.policy
    if {own.start, own.reference} != {"sft"}:  # the curve has another KL
        return
    if sampling.law_of(config.sample) != sampling.MODEL:
        return
    start = policies["sft"]["golden_mean"], policies["sft"]["golden_stderr"]
    for role, row in policies.items():
        if "/" in role and "@" not in role and role != USUAL:
            there = over_training.at_same_kl(curves[USUAL], row["kl_to_sft"], start)
            row["at_same_kl"] = None if there is None else row["golden_mean"] - there[0]
            row["at_same_kl_stderr"] = None if there is None else float(np.hypot(row["golden_stderr"], there[1]))


def _spearman(name: str, values, others) -> dict:
    within = metrics.spearman_within_prompts(values, others)
    return {f"spearman_{name}": within.mean, f"spearman_{name}_stderr": within.stderr}


def _heldout_pairs(context, judge):
    """Held-out preference pairs, all chosen before all rejected, or None."""
    if len({pair.chosen.prompt.tobytes() for pair in context.pairs}) < 2:
        return None
    chosen, rejected = recipe_data.data_of(context, "preference")[2]
    return judging.Judged(context, judge, [*chosen, *rejected])


def _paired(sets, golden, rewards, policies) -> list[tuple]:
    """(name, values [P], values [P]) to compare prompt by prompt at the run's own law; golden unless the name says otherwise."""
    length = {role: judged.by_prompt(judged.lengths).mean(1) for role, judged in sets.items() if role != "demo"}
    name = f"best-of-{COMPARED_N} by"
    best = [recipe for recipe in rewards if f"{name} {recipe}" in golden]
    wanted = [("sft", "init"), *((f"{name} {recipe}", "sft") for recipe in best)]
    wanted += [(f"{name} {recipe}", f"{name} length") for recipe in best if "length" in best and recipe not in ("length", "random")]
    rows = [(f"{one} - {other}", golden[one], golden[other]) for one, other in wanted]
    rows += [(f"{role} - sft", golden[role], golden["sft"]) for role in policies]
    rows += [(f"{role} - sft, length in tokens", length[role], length["sft"]) for role in policies]
    rows += [(f"{role} - {USUAL}", golden[role], golden[USUAL]) for role in policies if USUAL in policies and role != USUAL]
    return rows


def _report_material(sets, recipes, policies, judge, cold) -> dict:
    """The report's histograms, scatter and samples side by side."""
    histograms, scatter = {}, {}
    sft = sets["sft"]
    for recipe in recipes:
        values = {role: judged.reward(recipe) for role, judged in sets.items()}
        edges = _edges(np.concatenate(list(values.values())))
        histograms[recipe] = {role: {"edges": edges.tolist(), "counts": np.histogram(v, edges)[0].tolist()}
                              for role, v in values.items()}
        some = slice(0, 1500)
        scatter[recipe] = {"length": sft.lengths[some].tolist(), "reward": sft.reward(recipe)[some].tolist(),
                           "golden": sft.golden[some].tolist() if judge else None}
    return {"histograms": histograms, "scatter": scatter, "samples": _side_by_side({**sets, **cold}, recipes, policies, judge)}


def _edges(values: np.ndarray, bins: int = 40) -> np.ndarray:
    """Histogram edges for the values, which may be (nearly) all equal."""
    low, high, scale = values.min(), values.max(), max(1.0, np.abs(values).max())
    if high - low < 1e-6 * scale:  # too little for so many bins
        low, high = low - scale / 2, high + scale / 2
    return np.linspace(low, high, bins + 1)


def _side_by_side(sets, recipes, policies, judge, prompts: int = 24) -> list[dict]:
    """For the first prompts: init, sft, sft at temperatures, the best of 16 (of all, if fewer) by the first recipe, every policy."""
    out, cold = [], [name for name in sets if name.startswith("sft@")]
    best_by, best_of = recipes[0], min(COMPARED_N, sets["sft"].by_prompt(sets["sft"].lengths).shape[1])
    for p in range(min(prompts, sets["sft"].by_prompt(sets["sft"].lengths).shape[0])):
        responses = []
        for role in ("init", "sft", *cold, f"best-of-{best_of} by {best_by}", *policies):
            judged = sets.get(role, sets["sft"])
            each = judged.by_prompt(judged.lengths).shape[1]
            index = p * each
            if role.startswith("best-of"):
                index += int(np.argmax(judged.reward(best_by)[index : index + best_of]))
            responses.append({"source": role, "text": judged.texts[1][index], "length": int(judged.lengths[index]),
                              "golden": float(judged.golden[index]) if judge else None,
                              "rewards": {r: float(judged.reward(r)[index]) for r in recipes if r not in ("golden", "random")}})
        out.append({"prompt": sets["sft"].texts[0][p * (len(sets["sft"].examples) // len({e.source for e in sets["sft"].examples}))],
                    "responses": responses})
    return out


def _say(context, results) -> None:
    for role, row in results["policies"].items():
        if row["golden_mean"] is not None:
            context.say(f"golden {role}: {row['golden_mean']:.3f} +- {row['golden_stderr']:.3f}, {row['length_mean']:.1f} tokens")
    if results["baseline"]:
        context.say(f"the best of sft without a reward: {results['baseline']}")
    for row in results["paired"]:
        if any(f"by {control} at T" in row["name"] for control in CONTROLS):
            continue  # the report has them
        context.say(f"{row['name']}: {row['difference']:+.3f} +- {row['stderr']:.3f}")
