"""How much of one text's content another keeps: the cosine of their TF-IDF vectors, of words and of letters within words."""

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
    """The similarity of two texts, by how rare their words are in `texts`.

    similarity(a, b) = (cos(w(a), w(b)) + cos(c(a), c(b))) / 2: w are the TF-IDF vectors of words, c those of the n-grams of 2 to
    4 letters within words, which forgive another ending or spelling; both have sublinear counts, inverse document frequencies
    from `texts` (an unseen feature weighs as much as the rarest can) and length 1. Case and marks without a letter or digit
    count nothing. A text against itself is 1, texts without a common pair of letters are 0; where either has no word, 0.

    Args:
        texts: what document frequencies are counted in.

    Returns:
        similarity(one, other) -> float64 [n], in [0, 1].
    """
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    parts = []
    for settings in (_WORDS, _LETTERS):
        # hashed, so that words that `texts` lack, such as names, count too
        counter = HashingVectorizer(**settings, n_features=_BUCKETS, norm=None, alternate_sign=False, preprocessor=_words_alone)
        parts.append((counter, TfidfTransformer(sublinear_tf=True).fit(counter.transform(texts))))

    def similarity(one: Sequence[str], other: Sequence[str]) -> np.ndarray:
        cosines = [weights.transform(counter.transform(one)).multiply(weights.transform(counter.transform(other))).sum(axis=1)
                   for counter, weights in parts]
        return np.clip(np.asarray(np.hstack(cosines), np.float64).mean(axis=1), 0.0, 1.0)

    return similarity


def _words_alone(text: str) -> str:
    """Lower case, and blanks for whatever is no part of a word."""
    return " ".join(re.findall(_TOKEN, text.lower()))
