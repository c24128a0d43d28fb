"""The reward `robust`: development prompts, which trained nothing, decide its terms (see irl_jax/evaluation/robust.py)."""

from __future__ import annotations

import time

import numpy as np

from irl_jax import artifacts, loop, variants
from irl_jax.evaluation import robust
from irl_jax.stages import sampling, scoring
from irl_jax.types import Example


def run(context) -> dict:
    """Writes W/robust/robust.json: how each reward compares demonstrations with sft's samples, and the terms of `robust`.

    Writes nothing if no reward is learnt or there are fewer than two development prompts to look at.
    """
    start, learnt = time.perf_counter(), [method.name for method in variants.methods(context.config, "reward")]
    if not learnt or len(sampling.development(context)) < 2:
        context.say("robust: nothing to do (it needs a learnt reward and two development prompts)")
        return {"seconds": time.perf_counter() - start}
    with loop.CompileTime() as clock:
        tokens = _write(context, learnt)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "compile_seconds": clock.seconds(), "tokens_per_second": tokens / max(seconds - clock.seconds(), 1e-9)}


def _write(context, learnt: list[str]) -> int:
    config, demos = context.config.robust, sampling.development(context)
    cold = sampling.at("sft", config.temperature)
    tokens = sampling.draw(context, "sft", "development", context.config.sample.reward_samples)
    tokens += sampling.draw(context, cold, "development", config.samples)
    plain = sampling.load(context, "sft", "development")["examples"]
    directions = {name: _direction(context, name, demos, plain) for name in (*learnt, "mean_logprob")}
    found: dict = {"directions": {name: row._asdict() for name, row in directions.items()}}
    for name, row in directions.items():
        context.say(f"robust: demonstrations less sft's own samples by {name}: {row.difference:+.3f} ± {row.stderr:.3f}")
    if candidates := [name for name in learnt if name in config.recipes]:
        recipe = max(candidates, key=lambda name: directions[name].z)
        samples = _responses(context, recipe, sampling.load(context, cold, "development")["examples"], len(demos))
        terms, reasons = robust.gate(directions, {recipe: 1.0, "mean_logprob": config.weight}, samples)
        found |= {"recipe": recipe, "temperature": config.temperature, "prompts": len(demos), "reasons": reasons,
                  "terms": [term._asdict() for term in terms]}
        made = " + ".join(f"{term.weight:.4g} {term.reward}" for term in terms)
        context.say(f"robust = {made} at temperature {config.temperature:g}" if terms else
                    f"robust: the gate is closed; sample sft at temperature {config.temperature:g} and choose by nothing")
        for reason in reasons:
            context.say(f"robust: {reason}")
    artifacts.write_json(context.directory("robust") / "robust.json", found)
    return tokens


def _direction(context, name: str, demos: list[Example], plain: list[Example]):
    """A reward of the development demonstrations minus that of sft's samples, by prompt."""
    values = scoring.rewards(context, name, [*demos, *plain])
    return robust.direction(values[: len(demos)], values[len(demos) :].reshape(len(demos), -1))


def _responses(context, recipe: str, examples: list[Example], prompts: int) -> robust.Responses:
    def shaped(values):
        return np.asarray(values).reshape(prompts, -1)

    each = len(examples) // prompts
    return robust.Responses(
        {name: shaped(scoring.rewards(context, name, examples)) for name in (recipe, "mean_logprob")},
        shaped([len(example.response) for example in examples]), shaped([example.ended for example in examples]),
        [[example.response for example in examples[p * each : (p + 1) * each]] for p in range(prompts)])
