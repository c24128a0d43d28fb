"""Why a reward selects what it selects, on finished testbed runs: python benchmarks/testbed_why.py RUN [RUN ...]

Counts features of sft's samples (content and dialect apart), and prints for every reward the within-prompt Spearman correlation with each,
and the mean of each feature among the best of 16 by that reward, beside sft's own. Evaluation only; nothing is trained.
"""

from __future__ import annotations

import sys

import numpy as np

from irl_jax import workdir
from irl_jax.data.testbed import golden, vocabulary
from irl_jax.data.testbed.prompts import read_prompt, split_words
from irl_jax.evaluation import best_of_n, metrics
from irl_jax.evaluation.golden import make_judge
from irl_jax.stages import context as contexts
from irl_jax.stages import evaluate

FEATURES = ("golden", "tokens", "sentences to the point", "beside the point", "garbled", "insults", "dialect words", "tail words")


def features(world, prompts, responses) -> dict[str, np.ndarray]:
    """{feature: [n]}: what the golden reward sees, and what it is blind to."""
    tail = set(vocabulary.TAIL)
    dialect = set(vocabulary.CANONICAL)
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        words = split_words(response)
        said = [golden.read_sentence(tuple(sentence)) for sentence in golden.sentences(response)]
        right = golden.expected_meanings(read_prompt(prompt))[0]
        forms = [meaning.form for meaning in said]
        to_the_point = sum(meaning in right for meaning in said)
        beside = sum(form not in ("decor", "garbled", "insult") for form in forms) - to_the_point
        rows.append((len(words) + 1, to_the_point, beside, forms.count("garbled"), forms.count("insult"),
                     sum(word in dialect for word in words), sum(word in tail for word in words)))
    columns = np.array(rows, float).T
    return dict(zip(FEATURES, [world.golden(prompts, responses), *columns], strict=True))


def table(path) -> dict:
    """{reward: {feature: (Spearman within prompts, mean among the best of 16)}}, with "sft" for the samples themselves."""
    context = contexts.Context(workdir.read_config(path), contexts.Reader(path))
    sft = evaluate.samples_of(context, make_judge(context.config, context.world), "sft")
    found = {name: sft.by_prompt(values) for name, values in features(context.world, *sft.texts).items()}
    out = {"sft": {name: (float("nan"), values.mean()) for name, values in found.items()}}
    for recipe in (*context.config.reward.recipes, "log_ratio", "length"):
        reward = sft.by_prompt(sft.reward(recipe))
        out[recipe] = {name: (metrics.spearman_within_prompts(reward, values).mean,
                              best_of_n.best_of_n_per_prompt(reward, values, 16).golden.mean()) for name, values in found.items()}
    return out


def main(paths) -> int:
    tables = [table(path) for path in paths]
    print("| reward | " + " | ".join(FEATURES) + " |\n" + "|---" * (len(FEATURES) + 1) + "|")
    for reward in tables[0]:
        cells = []
        for name in FEATURES:
            rho, mean = (np.mean([t[reward][name][i] for t in tables]) for i in (0, 1))
            cells.append(f"{mean:.2f}" + ("" if np.isnan(rho) else f" ({rho:+.2f})"))
        print(f"| `{reward}` | " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
