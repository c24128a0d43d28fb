"""How much of a reward the surface of a response explains: linear probes, cross-fitted by prompt.

A probe is a description, not a cause: a feature that goes along with quality takes its part of the AUC with it. That is why golden is
probed by the same features, and why `matched` compares responses of equal golden.
"""

from __future__ import annotations

import math

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from benchmarks.evidence import clustered
from irl_jax.evaluation import metrics

FOLDS = 5
DIGITS = 9  # of a residual, in standard deviations of the logit: what is left of an exactly linear one is rounding, and ties
CLEAR = 2.0  # standard errors that an AUC lies above 1/2 for a share of it to be said


def probe(logits_n, labels_n, features: dict[str, np.ndarray], groups_n) -> dict:
    """What linear functions of some features explain of a discriminator's logit and of its AUC.

    Every fit is on the prompts of four folds (of five) and used on those of the fifth. With h the logit, y the label and x the features:

      auc            of h; features_auc: of a logistic regression of y on x, the folds' scores pooled (classes weigh the same on every
                     prompt, so pooling costs nothing)
      residual_auc   of h - b'x, with b the least-squares slopes of h on x *within the classes*: the part of h that follows x where the
                     label says nothing. `explained` = 1 - (residual_auc - 1/2) / (auc - 1/2): the share of the AUC's surplus over
                     chance that goes with it; below 0 where the features hid it, None where `auc` is not clearly above 1/2
      residual_auc_both, explained_both: with the slopes over both classes, which also take what follows the label and goes along with x.
                     The first tells too little where h is a bent function of x, the second too much where x is a bystander: a bracket
      r2             cross-validated R^2 of h from x, over both classes; below 0 where x says less than the mean does
      coefficients   of h on x over both classes and all prompts, both in standard deviations; None where a feature never varies

    Args:
      logits_n: the reward. labels_n: 1 for positives, 0 for negatives. features: {name: [n]}. groups_n: the samples' prompts.

    Returns:
      The numbers above with their `_stderr` over prompts (a jackknife that holds the fits), {name: coefficient} with
      "coefficients_stderr" (clustered), and "n", "prompts".
    """
    logits, labels, groups = np.asarray(logits_n, np.float64), np.asarray(labels_n).astype(bool), np.asarray(groups_n)
    names, design = standardised(features)
    folds = _folds(groups)
    scores = _classifier_scores(design, labels, folds)
    residual = _residual(logits, labels, design, folds)
    predicted, baseline = _predictions(logits, design, folds)
    beyond = _rounded(logits - predicted, logits)
    auc_stderr = metrics.auc(logits[labels], logits[~labels], (groups[labels], groups[~labels]))[1]

    def numbers(keep):
        auc, by_features, left, both = (_auc(values[keep], labels[keep]) for values in (logits, scores, residual, beyond))
        return np.array([auc, by_features, left, 1 - _ratio(left - 0.5, auc - 0.5), both, 1 - _ratio(both - 0.5, auc - 0.5),
                         _r2(logits[keep], predicted[keep], baseline[keep])])

    found, errors = numbers(np.ones(len(logits), bool)), clustered.jackknife(numbers, groups)
    errors[0] = auc_stderr  # DeLong's
    if not found[0] - 0.5 > CLEAR * auc_stderr:
        found[[3, 5]] = errors[[3, 5]] = math.nan
    keys = ("auc", "features_auc", "residual_auc", "explained", "residual_auc_both", "explained_both", "r2")
    out = {key: value for key, value in zip(keys, found, strict=True)} | {
        f"{key}_stderr": value for key, value in zip(keys, errors, strict=True)}
    spread = logits.std()
    fits = clustered.least_squares(_with_ones(design), (logits - logits.mean()) / spread if spread else logits * 0, groups)
    return metrics.jsonable(out | _coefficients(features, names, *(values[1:] for values in fits))
                            | {"n": len(logits), "prompts": len(np.unique(groups))})


def within_prompts(values_PxM, features: dict[str, np.ndarray]) -> dict:
    """How a score of samples follows their features among the samples of one prompt, which is all that best-of-n can use.

    Prompts' means are taken off both sides, which then are in standard deviations within prompts.

    Args:
      values_PxM: the score. features: {name: [P, M]}.

    Returns:
      {"r2": cross-validated by prompt, with "r2_stderr"; "coefficients", "coefficients_stderr": {name: number}; "n", "prompts"}; a score
      that never varies within a prompt has none of the numbers.
    """
    values = np.asarray(values_PxM, np.float64)
    prompts = np.repeat(np.arange(len(values)), values.shape[1])
    centred = (values - values.mean(1, keepdims=True)).ravel()
    names, design = standardised({name: column - column.mean(1, keepdims=True) for name, column in features.items()})
    spread = centred.std()
    target = centred / spread if spread > 1e-12 else np.full(len(centred), math.nan)
    coefficients, errors = clustered.least_squares(design, target, prompts)
    predicted = _out_of_fold(_folds(prompts), len(target), lambda train, test: design[test] @ _slopes(design[train], target[train]))
    r2 = lambda keep: np.array([_r2(target[keep], predicted[keep], 0.0)])
    return metrics.jsonable({"r2": r2(slice(None))[0], "r2_stderr": clustered.jackknife(r2, prompts)[0],
                             **_coefficients(features, names, coefficients, errors), "n": values.size, "prompts": len(values)})


def standardised(features: dict[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """(names, [n, k]): the features that vary, raveled, less their mean and over their standard deviation."""
    columns = {name: np.asarray(column, np.float64).ravel() for name, column in features.items()}
    names = [name for name, column in columns.items() if column.std() > 1e-12]
    rows = len(next(iter(columns.values())))
    design = np.stack([(columns[n] - columns[n].mean()) / columns[n].std() for n in names], 1) if names else np.zeros((rows, 0))
    return names, design


def _coefficients(features, names, values, errors) -> dict:
    """{"coefficients", "coefficients_stderr"} of all features, None for those that never vary."""
    nothing = dict.fromkeys(features)
    return {"coefficients": nothing | dict(zip(names, values, strict=True)),
            "coefficients_stderr": nothing | dict(zip(names, errors, strict=True))}


def _folds(groups) -> list:
    """(train, test) indices of each fold; no prompt is in both. Of a single prompt, none."""
    count = min(FOLDS, len(np.unique(groups)))
    return list(GroupKFold(count).split(groups, groups=groups)) if count > 1 else []


def _out_of_fold(folds, n: int, predict) -> np.ndarray:
    out = np.full(n, math.nan)
    for train, test in folds:
        out[test] = predict(train, test)
    return out


def _with_ones(design) -> np.ndarray:
    return np.concatenate([np.ones((len(design), 1)), design], axis=1)


def _slopes(design, target) -> np.ndarray:
    return np.linalg.lstsq(design, target, rcond=None)[0] if design.shape[1] else np.zeros(0)


def _classifier_scores(design, labels, folds) -> np.ndarray:
    def predict(train, test):
        if not design.shape[1]:
            return np.zeros(len(test))
        return LogisticRegression(max_iter=1000).fit(design[train], labels[train]).decision_function(design[test])

    return _out_of_fold(folds, len(labels), predict)


def _residual(logits, labels, design, folds) -> np.ndarray:
    def predict(train, test):
        inside = design[train].copy()
        for side in (labels[train], ~labels[train]):
            inside[side] -= inside[side].mean(0)  # so that the classes' own means, of the logits too, drop out
        return logits[test] - design[test] @ _slopes(inside, logits[train])

    return _rounded(_out_of_fold(folds, len(logits), predict), logits)


def _rounded(residual, logits) -> np.ndarray:
    return np.round(residual / max(logits.std(), 1e-12), DIGITS)


def _predictions(logits, design, folds) -> tuple[np.ndarray, np.ndarray]:
    """The logits that the features predict, and those that the training folds' mean does."""
    ones = _with_ones(design)
    predicted = _out_of_fold(folds, len(logits), lambda train, test: ones[test] @ _slopes(ones[train], logits[train]))
    return predicted, _out_of_fold(folds, len(logits), lambda train, test: logits[train].mean())


def _auc(scores, labels) -> float:
    return metrics.auc(scores[labels], scores[~labels])[0] if np.isfinite(scores).all() else math.nan


def _r2(target, predicted, baseline) -> float:
    return 1 - _ratio(np.square(target - predicted).sum(), np.square(target - baseline).sum())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
