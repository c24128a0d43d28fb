"""The surface of responses, for probes: what can be seen without reading what they say.

On the testbed: words that golden is blind to, the dialect's above all. On real text: length, variety, rarity and typography.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from irl_jax.data.testbed import golden, vocabulary
from irl_jax.data.testbed.prompts import split_words
from irl_jax.stages import sampling

HEAD = 0.9  # share of running words that the frequent words make up; all others are rare
QUOTES = "\"'`“”‘’«»"
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def describe(table: Frequencies | None, prompts: Sequence[str], responses: Sequence[str], examples) -> dict[str, np.ndarray]:
    """{feature: float64 [n]} of n responses, "tokens" (EOS included) and "ended" (0: cut) first.

    Args:
      table: of frequencies, for `of_text`; None on the testbed, for `of_testbed`.
      prompts, responses: as text. examples: the same as Example.
    """
    if table is None:
        rows, names = [of_testbed(response) for response in responses], TESTBED
    else:
        rows, names = [of_text(table, *texts) for texts in zip(prompts, responses, strict=True)], TEXT
    lengths = [(len(example.response), example.ended) for example in examples]
    columns = np.concatenate([np.array(lengths, np.float64), np.array(rows, np.float64)], axis=1).T
    return dict(zip(("tokens", "ended", *names), columns, strict=True))


# ------------------------------------------------------------------------------------------------------------ the testbed
TESTBED = ("tail_words", "dialect_words", "dialect_addresses", "dialect_opening", "plain_opening", "dialect_closing", "plain_closing")
_TAIL, _DIALECT = set(vocabulary.TAIL), set(vocabulary.CANONICAL)
_OPENINGS, _ADDRESSES, _CLOSINGS = zip(*vocabulary.REGISTERS, strict=True)


def of_testbed(response: str) -> tuple[float, ...]:
    """The features `TESTBED`: how many words of the tail and of the dialect stand in a response, and how many forms of address; and (1 or
    0) whether the first sentence is an opening of the dialect, or a plain one, and the last a closing of the dialect, or a plain one."""
    words = split_words(response)
    said = golden.sentences(response)
    first, last = (golden.read_sentence(tuple(sentence)).words for sentence in (said[0], said[-1])) if said else ((), ())
    return (sum(word in _TAIL for word in words), sum(word in _DIALECT for word in words),
            sum(pair in _ADDRESSES for pair in zip(words, words[1:], strict=False)), first in _OPENINGS,
            first in vocabulary.PLAIN_OPENINGS, last in _CLOSINGS, last in vocabulary.PLAIN_CLOSINGS)


# -------------------------------------------------------------------------------------------------------------- real text
TEXT = ("type_token_ratio", "rare_share", "opening_class", "punctuation", "quotes", "uppercase", "repeated_bigrams", "copied_share")


class Frequencies:
    """How often words, and words as openings, stand in a set of texts."""

    def __init__(self, texts: Sequence[str]):
        said = [words_of(text) for text in texts]
        counts = Counter(word for words in said for word in words)
        self.openings = Counter(words[0] for words in said if words)
        self.commonest = max(self.openings.values(), default=1)
        before, total = 0, sum(counts.values())
        self.head: set[str] = set()
        for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            if before >= HEAD * total:
                break
            self.head.add(word)
            before += count

    @classmethod
    def of(cls, context) -> Frequencies | None:
        """Those of a run's samples of init for the rewards, none of which is to an evaluation prompt; None on the testbed."""
        if context.is_testbed:
            return None
        return cls([context.text(example.response) for example in sampling.load(context, "init", "reward")["examples"]])

    def opening_class(self, word: str) -> float:
        """log2 of how much rarer an opening is than the commonest one; one that was never seen counts half a time."""
        return math.log2(self.commonest / self.openings.get(word, 0.5))


def words_of(text: str) -> list[str]:
    """Words, lowercase, punctuation left out."""
    return [word.lower() for word in _WORD.findall(text)]


def of_text(table: Frequencies, prompt: str, response: str) -> tuple[float, ...]:
    """The features `TEXT` of a response.

    type_token_ratio: distinct words over words. rare_share: of words outside the table's head, the frequent words that make up 90% of
    running text. opening_class: `Frequencies.opening_class` of the first word. punctuation: share of characters that are neither letter,
    digit, space nor quote. quotes: quotation marks and apostrophes a word. uppercase: share of letters. repeated_bigrams: share of word
    pairs that stood before. copied_share: of words that the prompt has. A response without words has 0 wherever a share is undefined.
    """
    words, asked = words_of(response), set(words_of(prompt))
    letters, pairs = sum(map(str.isalpha, response)), list(zip(words, words[1:], strict=False))
    marks = sum(not (c.isalnum() or c.isspace() or c in QUOTES) for c in response)
    share = lambda part, whole: part / whole if whole else 0.0
    return (share(len(set(words)), len(words)), share(sum(w not in table.head for w in words), len(words)),
            table.opening_class(words[0]) if words else 0.0, share(marks, len(response)),
            share(sum(c in QUOTES for c in response), len(words)), share(sum(map(str.isupper, response)), letters),
            share(len(pairs) - len(set(pairs)), len(pairs)), share(sum(w in asked for w in words), len(words)))
