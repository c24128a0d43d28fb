"""HH-RLHF for this package, and what rewards learnt on it must beat: chance, length, and a bag of words.

  python -m benchmarks.evidence.hh prepare --transcripts=PATH/harmless-base/test.jsonl.gz --out=runs/paper/hh
  python -m benchmarks.evidence.hh baselines runs/paper/hh/seed-0 [RUN ...]

The conversations are parted: the chosen replies of some are the demonstrations, the pairs of the others are what `preference` learns
from and all rewards are judged by. So sft, and the closed form with it, has seen no reply that it is judged on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
from collections import Counter

import numpy as np

from irl_jax import workdir
from irl_jax.config import default
from irl_jax.data import sources
from irl_jax.errors import UserError
from irl_jax.evaluation import metrics
from irl_jax.stages import context as contexts
from irl_jax.stages import recipe_data, scoring

DEMONSTRATION_SHARE = 0.4  # of the conversations; the others' pairs are for `preference` and the judging
PENALTIES = (0.01, 0.1, 1.0, 10.0)  # inverse: C of the bag of words, chosen on the pairs for early stopping
_TFIDF = dict(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"\w[\w']*")


def prepare(out: str | os.PathLike, transcripts: str | os.PathLike | None = None) -> dict[str, str]:
    """Writes OUT/data/{demonstrations,pairs}.jsonl, the same bytes from the same transcripts; returns the config overrides that name them.

    A conversation goes to one side by a hash of its opening (everything up to the first reply), whatever its length.

    Args:
        out: a folder; made where missing. transcripts: JSONL(.gz) of {chosen, rejected} as published; None takes the shared
            folder's ($IRL_JAX_SHARED, or ../shared).

    Raises:
        UserError: no such file, or one that holds no transcripts.
    """
    shared = os.environ.get("IRL_JAX_SHARED", os.path.join("..", "shared"))
    source = transcripts or os.path.join(shared, "data", "hh", "harmless-base.test.jsonl.gz")
    rows = list(sources.hh_rows(sources.read_jsonl(source), default().data.fields, Counter()))
    folder = pathlib.Path(out) / "data"
    folder.mkdir(parents=True, exist_ok=True)
    shown = [row for row in rows if _place(row.prompt) < DEMONSTRATION_SHARE]
    judging = [row for row in rows if _place(row.prompt) >= DEMONSTRATION_SHARE]
    _write(folder / "demonstrations.jsonl", [{"prompt": row.prompt, "response": row.response} for row in shown])
    _write(folder / "pairs.jsonl", [{"prompt": row.prompt, "chosen": row.pair[0], "rejected": row.pair[1]} for row in judging])
    return {"data.source": str(folder / "demonstrations.jsonl"), "data.preference_source": str(folder / "pairs.jsonl")}


def _place(prompt: str) -> float:
    """A number in [0, 1) that the conversation's opening alone decides."""
    opening = prompt.split(sources.HH_MARK)[0]
    return int.from_bytes(hashlib.blake2b(opening.encode(), digest_size=8).digest(), "big") / 2**64


def _write(path: pathlib.Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def baselines(run) -> dict:
    """Agreement with human preferences on the run's held-out pairs: of what takes no reward, and of the run's rewards beside it.

    The pairs are those of results.json's `pair_accuracy`: which are for training, for early stopping and held out is
    `irl_jax.stages.recipe_data.data_of`'s split, by the run's seed. length: the longer or the shorter response, in tokens as the
    run cuts them, whichever is right more often on the training pairs. bag_of_words: logistic regression (no intercept) on the
    difference of the responses' TF-IDF vectors of words and word pairs, fitted to the training pairs, C chosen by the
    likelihood of those for early stopping. Ties count half.

    Args:
        run: a finished run's workdir, or a config, of whose rewards nothing is then said.

    Returns:
        {"pairs", "training_pairs", "chance": {"accuracy", "stderr"}, "length": {..., "prefers": "longer" | "shorter"},
        "bag_of_words": {..., "inverse_penalty"}, "rewards": {name: {"accuracy", "stderr", "less_length", "less_length_stderr",
        "less_bag_of_words", "less_bag_of_words_stderr"}}}: stderr over pairs, differences on the same pairs.

    Raises:
        UserError: the run has no pairs on two prompts at least, or a workdir is none.
    """
    is_config = hasattr(run, "to_dict")
    config = run if is_config else workdir.read_config(run)
    context = contexts.Context(config, None if is_config else contexts.Reader(run))
    recipe_data.require(context, ("preference",))
    training, stopping, held = recipe_data.data_of(context, "preference")
    longer = metrics.pair_accuracy(*(_lengths(side) for side in training))[0] >= 0.5
    length = [(1 if longer else -1) * _lengths(side) for side in held]
    words, penalty = _bag_of_words(*([[context.text(e.response) for e in side] for side in part] for part in (training, stopping, held)))
    found = {
        "pairs": len(held[0]), "training_pairs": len(training[0]),
        "chance": {"accuracy": 0.5, "stderr": 0.5 / len(held[0]) ** 0.5},
        "length": {**_row(*length), "prefers": "longer" if longer else "shorter"},
        "bag_of_words": {**_row(*words), "inverse_penalty": penalty}, "rewards": {},
    }
    for name in () if is_config else _rewards_of(config):
        scores = np.split(scoring.rewards(context, name, [*held[0], *held[1]]), 2)
        found["rewards"][name] = _row(*scores) | _less("length", scores, length) | _less("bag_of_words", scores, words)
    return found


def _rewards_of(config) -> list[str]:
    return [*config.reward.recipes, *(control for control in config.reward.controls if control == "log_ratio")]


def _lengths(examples) -> np.ndarray:
    return np.array([len(example.response) for example in examples], np.float64)


def _row(chosen, rejected) -> dict:
    return dict(zip(("accuracy", "stderr"), metrics.pair_accuracy(chosen, rejected), strict=True))


def _less(name: str, scores, others) -> dict:
    """Accuracy less another's, on the same pairs."""
    right = [(np.sign(side[0] - side[1]) + 1) / 2 for side in (scores, others)]
    paired = metrics.paired_difference(*right)
    return {f"less_{name}": paired.difference, f"less_{name}_stderr": paired.stderr}


def _bag_of_words(training, stopping, held) -> tuple[list[np.ndarray], float]:
    """([scores of the held-out chosen texts, of the rejected], C). Each part: (chosen texts, rejected texts)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    vectorizer = TfidfVectorizer(**_TFIDF).fit([*training[0], *training[1]])
    difference, looked_at = (vectorizer.transform(part[0]) - vectorizer.transform(part[1]) for part in (training, stopping))
    sides, labels = _both_ways(difference)
    fits = {penalty: LogisticRegression(C=penalty, fit_intercept=False, max_iter=1000).fit(sides, labels) for penalty in PENALTIES}
    losses = {penalty: log_loss(np.ones(looked_at.shape[0]), fit.predict_proba(looked_at)[:, 1], labels=[0, 1])
              for penalty, fit in fits.items()}
    best = min(losses, key=losses.get)
    return [np.asarray(vectorizer.transform(texts) @ fits[best].coef_[0]) for texts in held], best


def _both_ways(difference):
    """Each pair as chosen less rejected, label 1, and rejected less chosen, label 0."""
    from scipy.sparse import vstack

    count = difference.shape[0]
    return vstack([difference, -difference]).tocsr(), np.repeat([1, 0], count)


def main(argv: list[str] | None = None) -> int:
    """`prepare` prints the flags that name the files; `baselines` prints one JSON object a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("prepare", help="write the files of configs/paper/hh.py")
    making.add_argument("--transcripts", help="JSONL(.gz) of {chosen, rejected}; by default the shared folder's")
    making.add_argument("--out", required=True, help="folder to write data/*.jsonl into")
    judging = verbs.add_parser("baselines", help="judge finished runs' rewards beside the baselines")
    judging.add_argument("runs", nargs="+", metavar="RUN")
    args = parser.parse_args(argv)
    try:
        if args.verb == "prepare":
            print(" ".join(f"--config.{key}={value}" for key, value in prepare(args.out, args.transcripts).items()))
        else:
            for run in args.runs:
                print(json.dumps({"run": run, **baselines(run)}, indent=1))
    except UserError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
