"""Where golden is mostly one surface feature: how far the rewards go with it between their classes, and among sft's samples of a prompt.

A classifier is asked to tell its classes apart, and whatever does that is enough: that its logits go with a feature from class to class
does not say that it orders samples of one class by it. Coefficients are of probes.py: standard deviations of the reward a standard
deviation of the feature, within each set.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.evidence import laws
from benchmarks.evidence.claims import N
from benchmarks.evidence.effects import Effect, Study, difference, number, win
from irl_jax.stages.run_tables import markdown

MOSTLY = 0.5  # of golden's coefficient of the feature, at least
APART = 0.99  # AUC of the features alone from which on classes count as told apart by them
KEPT = 0.5  # of its coefficient between classes, that a reward keeps among samples of one prompt; below that it has lost the feature
OWN, AMONG = ("coefficients",), ("on_sft", "coefficients")  # of a reward's probe: on its own held-out examples, among sft's samples


def decisive(study: Study) -> tuple[str, Effect] | None:
    """The feature that golden is mostly among sft's samples of one prompt, and golden's coefficient of it; None where there is none."""
    found = study.by_size("analyses", "golden_probe", "coefficients")
    return found[0] if found and abs(found[0][1].mean) >= MOSTLY else None


def coefficients(study: Study, feature: str) -> dict[str, tuple[Effect, Effect]]:
    """{reward: (coefficient on its own held-out examples, among sft's samples of one prompt)}; the control `length` is left out."""
    found = {}
    for name in study.names("analyses", "probes"):
        own, among = (study.effect(number("analyses", "probes", name, *where, feature)) for where in (OWN, AMONG))
        if own and among and name != "length":
            found[name] = own, among
    return found


def lost(own: Effect, among: Effect) -> bool:
    """Whether a reward goes with a feature between its classes and, for certain, less than KEPT of that among samples of one prompt."""
    sign = 1 if own.mean > 0 else -1
    return min(sign * own.low, sign * own.high) > 0 and max(sign * among.low, sign * among.high) < KEPT * sign * own.mean


def paragraphs(study: Study) -> list[str]:
    """What the page says of it: a sentence, a table, and what it means that rewards have lost the feature; [] where golden is more."""
    if not (found := decisive(study)):
        return []
    feature, golden = found
    rewards = coefficients(study, feature)
    name = said(feature)
    rows = []
    for reward, (own, among) in rewards.items():
        first, most = study.by_size("analyses", "probes", reward, *OWN)[0]
        rows.append([f"`{reward}`", own.text(2), among.text(2), f"{said(first)} {most.mean:+.2f}"])
    parts = [f"Golden among sft's samples of one prompt is mostly one feature, {name} (coefficient {golden.text(2)}). The rewards' "
             "coefficients of it, each in standard deviations of its set:",
             markdown(["reward", "on its own held-out examples", "among sft's samples of one prompt", "largest of all on its own"], rows)]
    without = [reward for reward, both in rewards.items() if lost(*both) and _apart(study, reward)]
    if without:
        parts.append(_why(name, without, rewards))
    return parts


def _why(name: str, without: list[str], rewards: Mapping[str, tuple[Effect, Effect]]) -> str:
    listed = " and ".join(f"`{reward}`" for reward in without)
    text = (f"Surface features alone tell the classes of {listed} apart (AUC {APART} or more). The logits go with {name} from class to "
            "class, and less than half as much among samples of one class, where it would order them: telling the classes apart is all "
            "that is asked of a classifier, and other features do that.")
    kept = rewards.get("log_ratio")
    return text + (f" `log_ratio`, a sum over tokens, goes with {name} in both." if kept and not lost(*kept) else "")


def sentences(studies: Mapping[str, Study]) -> list[str]:
    """Where the closed form chooses better than `init_sft`, if whether features alone tell its classes apart decides it everywhere."""
    less = difference(win("log_ratio", N), win("init_sft", N))
    found = {name: (_apart(study, "init_sft"), one) for name, study in studies.items() if (one := study.effect(less)) and one.seeds > 1}
    apart, other = ({name: one for name, (told, one) in found.items() if told is side} for side in (True, False))
    if not apart or not other or min(one.low for one in apart.values()) <= 0 or max(one.high for one in other.values()) >= 0:
        return []
    alone = "; one data set" if len({name.removesuffix(laws.TWIN) for name in apart}) == 1 else ""
    return [f"Where surface features alone tell samples of sft from those of init with an AUC of {APART} or more, choose by the closed "
            f"form `log_ratio`: the win rate of best-of-{N} by it was above that by `init_sft` there ({_listed(apart)}{alone}), and "
            f"below it elsewhere ({_listed(other)})."]


def _listed(effects: Mapping[str, Effect]) -> str:
    return ", ".join(f"{name} {one.mean:+.3f}" for name, one in effects.items())


def _apart(study: Study, reward: str) -> bool:
    alone = study.effect(number("analyses", "probes", reward, "features_auc"))
    return alone is not None and alone.mean >= APART


def said(feature: str) -> str:
    """A feature's name in a sentence."""
    return feature.replace("_", " ")
