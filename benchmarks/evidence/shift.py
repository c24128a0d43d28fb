"""Along the rollout: each policy's log-probs and golden, position by position.

At a position only the responses that reach it are averaged, and which those are is selection: later positions are those of longer
responses, and of the prompts that have them. Compare roles at one position, minding `alive`, before one role at two. The golden reward is
of the response *cut* at the position, which ends most often within a sentence, so that its level means little and differences between roles
much; `golden_all` keeps finished responses in the mean with their final golden, and so has no selection.
"""

from __future__ import annotations

import numpy as np

from irl_jax.evaluation import metrics

POINTS = 24  # positions of a curve, at most


def positions(longest: int) -> np.ndarray:
    """Positions 1, 1 + s, 1 + 2s, ... up to the longest response, with the least stride s that gives `POINTS` at most."""
    return np.arange(1, longest + 1, -(-longest // POINTS))


def at(values: list[np.ndarray], places) -> np.ndarray:
    """[n, positions]: each response's value of the token at a position (the first is 1), NaN after its end."""
    out = np.full((len(values), len(places)), np.nan)
    for row, own in zip(out, values, strict=True):
        alive = np.asarray(places) <= len(own)
        row[alive] = own[np.asarray(places)[alive] - 1]
    return out


def curve(values_nxJ, prompts_n) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over prompts at each position: a prompt counts with the mean of its responses that have a value there (not
    NaN), and is left out where it has none.

    Returns:
      ([J], [J]); NaN where no prompt is left, and the error where only one is.
    """
    _, prompt = np.unique(prompts_n, return_inverse=True)
    known = ~np.isnan(values_nxJ)
    sums, counts = (np.zeros((prompt.max() + 1, values_nxJ.shape[1])) for _ in range(2))
    np.add.at(sums, prompt, np.where(known, values_nxJ, 0.0))
    np.add.at(counts, prompt, known)
    there = counts > 0
    means, number = np.where(there, sums / np.maximum(counts, 1), 0.0), there.sum(0)
    average = means.sum(0) / np.maximum(number, 1)
    spread = np.where(there, np.square(means - average), 0.0).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.where(number > 1, np.sqrt(spread / (number - 1) / number), np.nan)
    return np.where(number > 0, average, np.nan), errors


def golden_along(judge, text, prompts, examples, final_n, places) -> tuple[np.ndarray, np.ndarray]:
    """Golden of every response cut at each position.

    Args:
      judge: golden's. text: ids -> text. prompts: as text, one a response. examples: the responses. final_n: golden of the whole ones.
      places: positions.

    Returns:
      (alive [n, J], NaN after a response's end; all [n, J], the final golden there).
    """
    alive = np.full((len(examples), len(places)), np.nan)
    asked: dict[tuple, list] = {}  # what is cut alike is judged once
    for row, (prompt, example) in enumerate(zip(prompts, examples, strict=True)):
        for column, place in enumerate(places):
            if place < len(example.response):
                asked.setdefault((prompt, example.response[:place].tobytes()), []).append((row, column))
            elif place == len(example.response):
                alive[row, column] = final_n[row]
    cuts = {}
    for key, cells in asked.items():
        row, column = cells[0]
        cuts[key] = text(examples[row].response[: places[column]])
    scores = judge.score([prompt for prompt, _ in asked], list(cuts.values()))
    for cells, score in zip(asked.values(), scores, strict=True):
        for row, column in cells:
            alive[row, column] = score
    return alive, np.where(np.isnan(alive), np.asarray(final_n)[:, None], alive)


def token_logprobs(context, judged, role: str) -> dict[str, list | None]:
    """{"init", "sft", "demo", and the role's own: log-prob of each token of its responses}, under the models themselves, whatever law they
    were sampled by; None for a demonstrator whose law is not known."""
    known: dict = {name: context.scorer.token_logprobs(context.leaves(name), judged.examples) for name in ("init", "sft")}
    known["demo"] = None if context.world is None else context.world.demonstrator_token_logprobs(
        judged.texts[0], [list(map(int, example.response)) for example in judged.examples])
    if role not in known:
        known[role] = context.scorer.token_logprobs(context.leaves(role), judged.examples)
    return known


def along(context, judge, judged, logprobs: dict, role: str, places) -> dict:
    """The curves of one role's responses.

    Args:
      judge: golden's, or None. judged: the role's responses, and logprobs those of their tokens (`token_logprobs`). places: positions.

    Returns:
      {"position": places, and lists of that length: "log_prob" (the role's own), "init_log_prob", "sft_log_prob", "demo_log_prob" (mean
      log-prob of the token there, nats), "golden", "golden_all", "alive" (share of responses that are so long), each with its "_stderr";
      "responses", "prompts": numbers}. What is not known is None.
    """
    examples, prompts = judged.examples, [example.source for example in judged.examples]
    columns = {"log_prob" if name is None else f"{name}_log_prob": logprobs[name or role] for name in (None, "init", "sft", "demo")}
    columns = {name: None if values is None else at(values, places) for name, values in columns.items()}
    columns["alive"] = np.array([[float(len(example.response) >= place) for place in places] for example in examples])
    columns |= {"golden": None, "golden_all": None}
    if judge is not None:
        columns["golden"], columns["golden_all"] = golden_along(
            judge, context.text, judged.texts[0], examples, judged.golden, places)
    out = {"position": places.tolist(), "responses": len(examples), "prompts": len(set(prompts))}
    for name, values in columns.items():
        out[name], out[f"{name}_stderr"] = (None, None) if values is None else curve(values, prompts)
    return metrics.jsonable(out)
