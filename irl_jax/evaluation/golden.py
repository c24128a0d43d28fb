"""The golden reward: a judge of text that no training step ever sees."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from irl_jax import paths
from irl_jax.checks import check_golden_source
from irl_jax.config import GOLDEN_KINDS
from irl_jax.data.sources import number_field, read_jsonl, text_field
from irl_jax.errors import UserError
from irl_jax.evaluation import preservation

_FIELDS = "golden.text_field and golden.rating_field"
_SEED = 0  # not the run's: one judge for every seed
_HELDOUT_SHARE = 0.1  # of the rated records
_WINDOWS = 4  # per record
_TFIDF = dict(ngram_range=(1, 2), min_df=3, sublinear_tf=True, token_pattern=r"\w[\w']*")
_INVERSE_PENALTY = 3.0


class Judge(NamedTuple):
    """name: kind of judge. heldout_accuracy: share of held-out windows it classifies correctly, None if no classifier.
    unit: of the scores, for axis labels. score(prompts, responses) -> float64 [n]."""

    name: str
    heldout_accuracy: float | None
    unit: str
    score: Callable[[Sequence[str], Sequence[str]], np.ndarray]


class _Classifier(NamedTuple):
    vectorizer: Any
    model: Any
    heldout_accuracy: float


def make_judge(config, world=None, directory: str | os.PathLike | None = None) -> Judge:
    """Builds the judge that `config.golden.kind` names.

    "testbed": the world's exact golden reward. "classifier": logistic regression on TF-IDF of words and word pairs, fitted to
    rated text. Its score is the probability that the response alone, without its prompt, is positive. golden.preserves = "prompt"
    multiplies it by the similarity of prompt and response (`preservation.fit_similarity`, with document frequencies from the
    rated text). This is for rewriting tasks: there, a good response to another prompt is no good. "none": scores of NaN.

    Args:
      config: the whole config; reads `golden` and the data sources. None of them may be the classifier's own.
      world: the testbed's World, for "testbed".
      directory: cache of fitted classifiers, by a hash of their settings and data; None caches nothing.

    Returns:
      Judge.

    Raises:
      UserError: an unknown kind, a missing or unfit world or source, a record without its field.
    """
    kind = config.golden.kind
    if kind == "testbed":
        if world is None:
            raise UserError("golden.kind: 'testbed' needs data.source = 'testbed'; use 'classifier' or 'none' with other data")
        return Judge("testbed", None, "score", lambda prompts, responses: _checked(world.golden, prompts, responses))
    if kind == "classifier":
        fitted = _load_or_fit(config, directory)
        if not config.golden.preserves:
            return Judge("classifier", fitted.heldout_accuracy, "probability of positive",
                         lambda prompts, responses: _checked(lambda _, texts: _probability(fitted, texts), prompts, responses))
        similarity = preservation.fit_similarity([text for text, _ in _rated(os.path.expanduser(config.golden.source), config.golden)])
        return Judge("classifier", fitted.heldout_accuracy, "probability of positive x content kept", lambda prompts, responses: _checked(
            lambda asked, texts: _probability(fitted, texts) * similarity(asked, texts), prompts, responses))
    if kind == "none":
        return Judge("none", None, "no judge", lambda prompts, responses: np.full(len(responses), np.nan))
    raise UserError(f"golden.kind: {kind!r} is not one of {', '.join(GOLDEN_KINDS)}")


def _checked(score, prompts, responses) -> np.ndarray:
    if len(prompts) != len(responses):
        raise ValueError(f"a judge needs one prompt a response, got {len(prompts)} and {len(responses)}")
    if not len(responses):
        return np.zeros(0)
    return np.asarray(score(list(prompts), list(responses)), np.float64)


def _probability(fitted: _Classifier, responses: list[str]) -> np.ndarray:
    return fitted.model.predict_proba(fitted.vectorizer.transform(responses))[:, 1]


def _load_or_fit(config, directory) -> _Classifier:
    try:
        import sklearn
    except ModuleNotFoundError:
        raise UserError("golden.kind: 'classifier' needs scikit-learn; pip install scikit-learn") from None
    golden, path = config.golden, os.path.expanduser(config.golden.source)
    check_golden_source(config)
    if golden.window_words < 1:
        raise UserError(f"golden.window_words: needs at least 1 word, got {golden.window_words}")
    cache = None
    if directory is not None:
        settings = (sklearn.__version__, _digest(path), golden.text_field, golden.rating_field, float(golden.positive_rating),
                    int(golden.window_words), _SEED, _HELDOUT_SHARE, _WINDOWS, _TFIDF, _INVERSE_PENALTY)
        cache = os.path.join(directory, f"golden-{hashlib.sha256(repr(settings).encode()).hexdigest()[:16]}.npz")
        if (kept := _read_kept(cache)) is not None:
            return kept
    fitted = _fit(path, golden)
    if cache is not None:
        arrays: dict[str, Any] = _numbers(fitted)  # Any: a key could be allow_pickle, which is no array
        paths.write(paths.of(cache), lambda file: np.savez_compressed(file, **arrays))
    return fitted


def _numbers(fitted: _Classifier) -> dict[str, np.ndarray]:
    """A fitted classifier as plain arrays. scikit-learn's own files are pickles, which could run code from others."""
    terms = "\n".join(fitted.vectorizer.get_feature_names_out())
    return {"terms": np.frombuffer(terms.encode(), np.uint8), "idf": fitted.vectorizer.idf_, "weights": fitted.model.coef_,
            "bias": fitted.model.intercept_, "accuracy": np.asarray(fitted.heldout_accuracy)}


def _read_kept(path: str) -> _Classifier | None:
    """Loads a classifier from what `_numbers` made of it; None if the file is missing or damaged: it can be refitted."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    try:
        arrays = paths.read_arrays(path)
        terms = arrays["terms"].tobytes().decode().split("\n")
        expected = {"terms": arrays["terms"].shape, "idf": (len(terms),), "weights": (1, len(terms)), "bias": (1,), "accuracy": ()}
        if any(arrays[name].shape != shape for name, shape in expected.items()) or len(set(terms)) != len(terms):
            return None
    except (OSError, KeyError, ValueError):
        return None
    vectorizer = TfidfVectorizer(dtype=np.float32, **_TFIDF, vocabulary={term: place for place, term in enumerate(terms)})
    vectorizer.idf_ = arrays["idf"]
    model = LogisticRegression()
    model.classes_, model.coef_, model.intercept_ = np.array([0, 1]), arrays["weights"], arrays["bias"]
    return _Classifier(vectorizer, model, float(arrays["accuracy"]))


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"golden.source: {path} cannot be read ({error.strerror})") from None


def _fit(path: str, golden) -> _Classifier:
    """Fits on windows of nine tenths of the records and measures accuracy on windows of the rest."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    threshold = float(golden.positive_rating)
    records = [(text.split(), rating >= threshold) for text, rating in _rated(path, golden)]
    rng = np.random.default_rng(_SEED)
    order = rng.permutation(len(records))
    heldout = max(1, int(len(records) * _HELDOUT_SHARE))
    texts, labels = _windows([records[i] for i in order[heldout:]], golden.window_words, rng)
    heldout_texts, heldout_labels = _windows([records[i] for i in order[:heldout]], golden.window_words, rng)
    _two_sides(path, threshold, labels, len(records))
    vectorizer = TfidfVectorizer(dtype=np.float32, **_TFIDF)
    try:
        features = vectorizer.fit_transform(texts)
    except ValueError as error:  # raised by scikit-learn if min_df keeps no word
        raise UserError(f"golden.source: {path}: too little text to fit a classifier to ({error})") from None
    model = LogisticRegression(C=_INVERSE_PENALTY, max_iter=300).fit(features, labels)
    accuracy = float(np.mean(model.predict(vectorizer.transform(heldout_texts)) == np.asarray(heldout_labels)))
    return _Classifier(vectorizer, model, accuracy)


def check(config) -> None:
    """Checks golden.source without fitting. Raises: UserError for an unusable record, or without ratings on both sides."""
    path, threshold = os.path.expanduser(config.golden.source), float(config.golden.positive_rating)
    labels = [rating >= threshold for _, rating in _rated(path, config.golden)]
    _two_sides(path, threshold, labels, len(labels))


def _two_sides(path: str, threshold: float, labels: Sequence[int], records: int) -> None:
    if len(set(labels)) < 2:
        which = "of the same side" if labels else "missing"
        raise UserError(f"golden.source: {path}: the {records} ratings are {which} (golden.positive_rating = "
                        f"{threshold:g}); a classifier needs records on both sides")


def _rated(path: str, golden) -> list[tuple[str, float]]:
    """The records of golden.source: text and rating."""
    return [(text_field(record, golden.text_field, where, key=_FIELDS), number_field(record, golden.rating_field, where, key=_FIELDS))
            for where, record in read_jsonl(path)]


def _windows(records, words: int, rng: np.random.Generator) -> tuple[list[str], list[int]]:
    """Several windows per record, each `words` long, at uniformly random places. A shorter text is one window."""
    texts, labels = [], []
    for text, positive in records:
        latest = len(text) - words
        for start in rng.integers(0, latest, size=_WINDOWS, endpoint=True) if latest > 0 else [0]:
            texts.append(" ".join(text[start : start + words]))
            labels.append(int(positive))
    return texts, labels
