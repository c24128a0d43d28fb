"""How much of one text's content another keeps: the cosine of their TF-IDF vectors of words and of letters within words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

Similarity = Callable[[Sequence[str], Sequence[str]], np.ndarray]

_BUCKETS = 2**18
_TOKEN = r"\w[\w']*"
_WORDS = dict(analyzer="word", token_pattern=_TOKEN, ngram_range=(1, 1))
_LETTERS = dict(analyzer="char_wb", ngram_range=(2, 4))


def fit_similarity(texts: Sequence[str]) -> Similarity:
    """Fits a similarity of two texts, by how rare their words are in `texts`.

    similarity(a, b) = (cos(w(a), w(b)) + cos(c(a), c(b))) / 2. w are TF-IDF vectors of words. c are those of n-grams of 2 to 4
    letters within words (a word's ends count too), which forgive another ending or spelling. Both have sublinear counts,
    inverse document frequencies from `texts` (an unseen feature weighs as much as the rarest can) and length 1. Case and marks
    without a letter or digit don't count. A text against itself is 1. Texts without a common n-gram, or without a word, are 0.

    Args:
        texts: for counting document frequencies.

    Returns:
        similarity(one, other) -> float64 [n], in [0, 1].
    """
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    parts = []
    for settings in (_WORDS, _LETTERS):
        # hashed, so words missing from `texts`, such as names, count too
        counter = HashingVectorizer(**settings, n_features=_BUCKETS, norm=None, alternate_sign=False, preprocessor=_words_alone)
        parts.append((counter, TfidfTransformer(sublinear_tf=True).fit(counter.transform(texts))))

    def similarity(one: Sequence[str], other: Sequence[str]) -> np.ndarray:
        cosines = [weights.transform(counter.transform(one)).multiply(weights.transform(counter.transform(other))).sum(axis=1)
                   for counter, weights in parts]
        return np.clip(np.asarray(np.hstack(cosines), np.float64).mean(axis=1), 0.0, 1.0)

    return similarity


def _words_alone(text: str) -> str:
    """Lower case, with blanks for whatever isn't part of a word."""
    return " ".join(re.findall(_TOKEN, text.lower()))
