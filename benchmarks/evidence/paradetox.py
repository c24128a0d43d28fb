"""ParaDetox for this package: human rewrites as demonstrations, held-out sentences for the judge, and natural pairs.

  python -m benchmarks.evidence.paradetox --tsv=PATH/paradetox.tsv --out=runs/paper/paradetox

ParaDetox (Logacheva et al. 2022, ACL; https://github.com/s-nlp/paradetox) is a TSV of toxic sentences with up to three human rewrites each
that keep the meaning. The toxic side is lower-cased and tokenised with blanks ("he 's an idiot ."), the rewrites are mostly not ("He's
wrong."): how a text is written would tell the sides apart before any word does. So all texts, on both sides, are written one way
(`written`), and what is left to tell is what is said.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import pathlib
import re
from typing import NamedTuple

from irl_jax.errors import UserError

MARK = " =>"  # ends a prompt; it has no letter, so that golden's content similarity does not see it
GOLDEN_SHARE = 0.3  # of the toxic sentences: for the judge alone
_QUOTES = str.maketrans({"’": "'", "‘": "'", "`": "'", "“": '"', "”": '"'})


class Rewrite(NamedTuple):
    """A toxic sentence and its first human rewrite, both as `written`."""

    toxic: str
    polite: str


def written(text: str) -> str:
    """A sentence in the one way that all are written here: lower case, plain quotes, single blanks, contractions in one piece
    ("don 't" and "do n't" are "don't"), no blank before a mark."""
    text = " ".join(text.translate(_QUOTES).lower().split())
    text = re.sub(r" ?n't\b", "n't", text)
    text = re.sub(r"(?<=\w) ?' ?(?=(?:s|t|re|ve|ll|d|m)\b)", "'", text)
    return re.sub(r"\s+(?=[.,!?;:%)\]])", "", text)


def read(tsv: str | os.PathLike) -> list[Rewrite]:
    """The sentences that have a rewrite which changes a word, each once (marks make no other sentence), in the file's order.

    Raises:
        UserError: no such file, or one without the columns.
    """
    try:
        with open(tsv, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{tsv}: cannot be read as ParaDetox's TSV: {error}") from None
    if not rows or not {"toxic", "neutral1"} <= set(rows[0]):
        raise UserError(f"{tsv}: has no columns 'toxic' and 'neutral1'; give ParaDetox's paradetox.tsv")
    found: dict[str, Rewrite] = {}
    for row in rows:
        toxic = written(row["toxic"] or "")
        rewrites = [written(row.get(f"neutral{i}") or "") for i in (1, 2, 3)]
        changed = [rewrite for rewrite in rewrites if re.search(r"\w", rewrite) and _words(rewrite) != _words(toxic)]
        if changed and _words(toxic):
            found.setdefault(_words(toxic), Rewrite(toxic, changed[0]))
    return list(found.values())


def prepare(out: str | os.PathLike, tsv: str | os.PathLike | None = None) -> dict[str, str]:
    """Writes OUT/data/{demonstrations,pairs,golden}.jsonl, the same bytes from the same TSV; returns the config overrides that name them.

    Sentences go to golden or to the demonstrations by a hash of the toxic one. demonstrations: {prompt, response}, the rewrite
    after "TOXIC =>". pairs: {prompt, chosen, rejected} of the same sentences, the rewrite over the toxic sentence itself.
    golden: {text, rating}, the toxic sentences at 0 and their rewrites at 1; none of its texts stands, word for word, in the others.
    Which demonstrations are for training and which prompts for evaluation is the run's split, by its seed.

    Args:
        out: a folder; made where missing. tsv: paradetox.tsv; None takes the shared folder's ($IRL_JAX_SHARED, or ../shared).

    Raises:
        UserError: as `read`.
    """
    shared = os.environ.get("IRL_JAX_SHARED", os.path.join("..", "shared"))
    rewrites = read(tsv or os.path.join(shared, "data", "paradetox", "paradetox.tsv"))
    judges = [rewrite for rewrite in rewrites if _place(rewrite.toxic) < GOLDEN_SHARE]
    shown = [rewrite for rewrite in rewrites if _place(rewrite.toxic) >= GOLDEN_SHARE]
    seen = {_words(text) for rewrite in shown for text in rewrite}
    folder = pathlib.Path(out) / "data"
    folder.mkdir(parents=True, exist_ok=True)
    asked = [(prompt_of(rewrite.toxic), rewrite) for rewrite in shown]
    _write(folder / "demonstrations.jsonl", [{"prompt": prompt, "response": f" {one.polite}"} for prompt, one in asked])
    _write(folder / "pairs.jsonl", [{"prompt": prompt, "chosen": f" {one.polite}", "rejected": f" {one.toxic}"} for prompt, one in asked])
    _write(folder / "golden.jsonl", [{"text": text, "rating": rating} for one in judges if not seen & {*map(_words, one)}
                                     for text, rating in ((one.toxic, 0), (one.polite, 1))])
    return {"data.source": str(folder / "demonstrations.jsonl"), "data.preference_source": str(folder / "pairs.jsonl"),
            "golden.source": str(folder / "golden.jsonl")}


def prompt_of(toxic: str) -> str:
    """The prompt that asks for a sentence's rewrite."""
    return toxic + MARK


def anchors(judge, rewrites: list[Rewrite]) -> dict[str, float]:
    """Mean golden of human rewrites, of verbatim copies, and of the rewrites of other sentences: what the scale means.

    Args:
        judge: of `irl_jax.evaluation.golden`. rewrites: two or more.
    """
    prompts, polite = [prompt_of(one.toxic) for one in rewrites], [one.polite for one in rewrites]
    answers = {"human rewrite": polite, "verbatim copy": [one.toxic for one in rewrites],
               "rewrite of another sentence": polite[1:] + polite[:1]}
    return {name: float(judge.score(prompts, texts).mean()) for name, texts in answers.items()}


def _words(text: str) -> str:
    """What is left of a sentence without its marks."""
    return " ".join(re.findall(r"\w+", text))


def _place(toxic: str) -> float:
    """A number in [0, 1) that a sentence's words alone decide."""
    return int.from_bytes(hashlib.blake2b(_words(toxic).encode(), digest_size=8).digest(), "big") / 2**64


def _write(path: pathlib.Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Prepares the files and prints the flags that name them, and golden's anchors."""
    from irl_jax.config import default
    from irl_jax.evaluation import golden

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tsv", help="paradetox.tsv; by default the shared folder's")
    parser.add_argument("--out", required=True, help="folder to write data/*.jsonl into")
    args = parser.parse_args(argv)
    try:
        overrides = prepare(args.out, args.tsv)
    except UserError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    print(" ".join(f"--config.{key}={value}" for key, value in overrides.items()))
    config = default()
    config.golden.update(kind="classifier", positive_rating=1.0, preserves="prompt", source=overrides["golden.source"])
    judge = golden.make_judge(config)
    print(f"the judge tells {judge.heldout_accuracy:.3f} of its own held-out texts rightly; mean golden of the demonstrations' sentences:")
    with open(overrides["data.preference_source"], encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    rewrites = [Rewrite(pair["rejected"].strip(), pair["chosen"].strip()) for pair in pairs]
    for name, value in anchors(judge, rewrites).items():
        print(f"  {name}: {value:.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
