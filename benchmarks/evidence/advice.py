"""What to do: sentences written by hand, chosen by the measured verdicts; every number in them is measured."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.evidence import foretell, laws, plan, shortcut
from benchmarks.evidence.claims import FAILS, HOLDS, MARGIN, UNKNOWN, UNTESTED, N, Tested, decided, marked
from benchmarks.evidence.drawing import Line
from benchmarks.evidence.effects import Effect, Study, golden_of, paired, win
from benchmarks.evidence.figures import TRAINED, ns_of, training_line
from irl_jax.config import LEARNT

NEED = "Not known yet: {experiments} must be run for it."


def advice(studies: Mapping[str, Study], tested: Mapping[str, Tested]) -> list[tuple[str, list[str]]]:
    """[(question, sentences)]: one page."""
    return [("Which recipe", recipe(studies, tested)), ("How many demonstrations", demonstrations(studies)),
            ("Which N", which_n(studies)), ("Whether to train a policy, and which way", policies(studies, tested)),
            ("Which KL, and when to stop", stopping(studies, tested))]


def leaders(study: Study) -> list[tuple[str, Effect]]:
    """The learnt rewards by the win rate (less one half) of best-of-N, the best first."""
    found = [(reward, one) for reward in LEARNT if (one := study.effect(win(reward, N)))]
    return sorted(found, key=lambda pair: -pair[1].mean)


def recipe(studies: Mapping[str, Study], tested: Mapping[str, Tested]) -> list[str]:
    """Whether best-of-N by init_sft is worth it, and who leads where."""
    claim = tested["best_of_n"]
    if claim.verdict == UNTESTED:
        return [NEED.format(experiments="`testbed` and the experiments on text")]
    where = _by_verdict(claim)
    said = [{
        HOLDS: f"Learn `init_sft` and take the best of several samples, if this is worth them: it beat sft wherever several seeds tell "
               f"({where}).",
        FAILS: f"Do not expect best-of-N by `init_sft` to beat sft: it did not by {MARGIN} anywhere that several seeds tell ({where}).",
        UNKNOWN: f"Whether best-of-N by `init_sft` beats sft could not be told ({where}): measure it on your own data before you use it.",
    }.get(claim.verdict, f"Whether best-of-N by `init_sft` beats sft {claim.verdict}. Read a few dozen of its choices beside "
          "sft's samples before you use it.")]
    for study in studies.values():
        found = leaders(study)
        if found:
            second = next((one for one in found[1:] if one[1].high >= found[0][1].low), None)
            apart = f", not told apart from `{second[0]}` ({second[1].mean + 0.5:.3f})" if second else ", apart from the others"
            said.append(f"{study.planned.title}: the highest win rate of best-of-{N} is `{found[0][0]}`'s, "
                        f"{found[0][1].mean + 0.5:.3f}{apart}.")
    first = {found[0][0] for study in studies.values() if (found := leaders(study))}
    if len(first) > 1:
        said.append("No recipe leads everywhere: learn several (they share everything but a small head and adapter) and compare them.")
    said.append({
        HOLDS: "Labels were not needed: `init_sft` beat a reward of preferences.",
        FAILS: "If you have labelled pairs, use them: `init_sft` did not beat a reward of preferences.",
        UNTESTED: "",
    }.get(tested["over_preference"].verdict, "Whether labelled pairs would serve you better could not be told, or depends on the data."))
    said.append({
        HOLDS: "The reward selected more than length.",
        FAILS: "Keep the `length` control beside it: choosing the longest sample did as well.",
        UNTESTED: "",
    }.get(tested["over_length"].verdict, "Keep the `length` control beside it: whether the reward is more than length was not the same "
          "everywhere, or could not be told."))
    return [one for one in [*said, *laws.sentences(studies), *foretellers(studies), *shortcut.sentences(studies)] if one]


def foretellers(studies: Mapping[str, Study]) -> list[str]:
    """What tells without labels which reward to trust."""
    said, among = [], foretell.points(studies)
    if auc := foretell.correlation(among, foretell.AUC, within=False):
        said.append(("The higher a reward's held-out AUC, the more best-of-N by it gained" if auc.low > 0 else
                     "Do not trust a reward for its held-out AUC: with a higher one best-of-N could not be shown to gain more")
                    + f" (rank correlation {auc.text(2)} over the rewards of all runs).")
    if auc := foretell.correlation(among, foretell.AUC, within=True):
        said.append(("Of several rewards of the same data the one with the higher AUC gained more" if auc.low > 0 else
                     "Among several rewards of the same data the one with the higher AUC could not be shown to gain more")
                    + f" (rank correlation {auc.text(2)} among the rewards of a run).")
    alone = foretell.correlation(among, foretell.ALONE, within=False)
    if alone and alone.high < 0:
        said.append("The better surface features alone told a reward's classes apart, the less best-of-N by it gained (rank correlation "
                    f"{alone.text(2)} over the rewards of all runs): look at `features_auc` of `python -m "
                    "benchmarks.evidence.analyse WORKDIR` before you use one (no labels needed).")
    surface = foretell.correlation(among, foretell.SURFACE, within=True)
    if surface and surface.high < 0:
        said.append("Of several rewards of the same data prefer the one that length and other surface features explain least among samples "
                    "of one prompt (`benchmarks/evidence/probes.py`; no labels needed): it gained more (rank correlation "
                    f"{surface.text(2)} among them).")
    return said


def demonstrations(studies: Mapping[str, Study]) -> list[str]:
    """What more demonstrations buy."""
    study = studies.get("testbed")
    factor = plan.FACTORS["demonstrations"]
    least, most = min(factor.cells), max(factor.cells)
    more = study and study.contrast(paired("best-of-16 by init_sft - sft"), factor.cells[most], factor.cells[least])
    if not more:
        return [NEED.format(experiments=f"`testbed`'s cells `{factor.cells[least]}` and `{factor.cells[most]}`")]
    few, many = (study.effect(paired("best-of-16 by init_sft - sft"), factor.cells[level]) for level in (least, most))
    numbers = f"(with {least:,} demonstrations {few.text()}, with {most:,} {many.text()})"
    said = [{
        HOLDS: f"Best-of-16 by `init_sft` gained more over sft with more demonstrations {numbers}: collect them before you tune anything.",
        FAILS: f"More demonstrations did not raise what best-of-16 by `init_sft` gains over the sft of the same data {numbers}.",
    }.get(decided(more, MARGIN), f"Whether more demonstrations raise the gain of best-of-16 by `init_sft` "
         f"{marked(more, 'could not be told')} {numbers}.")]
    few, many = (study.effect(golden_of("sft"), factor.cells[level]) for level in (least, most))
    more = study.contrast(golden_of("sft"), factor.cells[most], factor.cells[least])
    return [*said, {
        HOLDS: f"sft itself was the better for them: golden {few.mean:.3f} with {least:,}, {many.mean:.3f} with {most:,}.",
        FAILS: f"sft itself was not the better for them: golden {few.mean:.3f} with {least:,}, {many.mean:.3f} with {most:,}.",
    }.get(decided(more, MARGIN), f"Whether sft itself is the better for them {marked(more, 'could not be told')}: golden {more.text()}.")]


def which_n(studies: Mapping[str, Study]) -> list[str]:
    """From which N on more samples buy nothing."""
    said = []
    for study in studies.values():
        ns, found = ns_of(study), leaders(study)
        if not found:
            continue
        reward = found[0][0]
        rates = {n: study.effect(win(reward, n)) for n in ns}
        best = max(ns, key=lambda n: rates[n].mean)
        enough = next(n for n in ns if rates[n].mean >= rates[best].mean - MARGIN)
        if rates[best].low > 0:
            said.append(f"{study.planned.title}: best-of-N by `{reward}` was highest at N = {best} ({rates[best].mean + 0.5:.3f}) and "
                        f"within {MARGIN} of that from N = {enough} on{_falls(rates, best, ns)}.")
        else:
            said.append(f"{study.planned.title}: even where it was highest (N = {best}) the win rate of best-of-N by `{reward}` was not "
                        "above one half for certain.")
    return said or [NEED.format(experiments="`testbed` or an experiment on text with a judge")]


def _falls(rates: Mapping[int, Effect], best: int, ns) -> str:
    last = ns[-1]
    return f"; at N = {last} it had fallen to {rates[last].mean + 0.5:.3f}" if rates[best].mean - rates[last].mean > MARGIN else ""


def policies(studies: Mapping[str, Study], tested: Mapping[str, Tested]) -> list[str]:
    """Which trained policies are above sft."""
    said = []
    for study in studies.values():
        sides: dict[str, list[str]] = {"above": [], "below": [], "not told apart": []}
        roles = study.names("results", "policies")
        for role in roles:
            one = study.effect(paired(f"{role} - sft")) if "/" in role else None
            if one:
                side = "above" if one.low > 0 else "below" if one.high < 0 else "not told apart"
                sides[side].append(f"`{role}` ({one.mean:+.3f})")
        parts = [f"{side}{' from sft' if side == 'not told apart' else ' sft'}: {', '.join(of)}" for side, of in sides.items() if of]
        if parts:
            said.append(f"{study.planned.title}: {'; '.join(parts)}.")
    if not said:
        return [NEED.format(experiments="`testbed` or an experiment on text with a judge")]
    said.insert(0, {
        HOLDS: "A policy trained on a reward of demonstrations alone went beyond sft wherever several seeds tell: train one.",
        FAILS: "Stay with best-of-N: a policy trained on `init_sft` did not go beyond sft.",
        UNTESTED: "",
    }.get(tested["policy"].verdict, "Prefer best-of-N until a reward has earned more: whether a policy trained on `init_sft` goes beyond "
          "sft was not the same everywhere, or could not be told."))
    foretold = foretell.correlation(foretell.policies(studies), foretell.SAMPLED, within=False)
    if foretold and foretold.low > 0:
        said.append(f"Before you train one, judge best-of-{foretell.N} by the reward on some prompts: the more that gained over sft, the "
                    f"more the policy did (rank correlation {foretold.text(2)} over the policies of all runs).")
    said.append({
        HOLDS: "If you train one, refresh the reward: the adversarial loop ended above a reward fixed once.",
        FAILS: "Refreshing the reward was not worth its seconds: the adversarial loop did not end above a reward fixed once.",
        UNTESTED: "",
    }.get(tested["over_policy"].verdict, "Whether refreshing the reward pays was not the same everywhere, or could not be told."))
    return [one for one in said if one]


def stopping(studies: Mapping[str, Study], tested: Mapping[str, Tested]) -> list[str]:
    """From which KL on golden is below sft's, and what tells without golden."""
    said = []
    for study in studies.values():
        sft = study.effect(golden_of("sft"))
        for line in filter(None, (training_line(study, role) for role in TRAINED if sft)):
            at = below(line, sft)
            if at is not None:
                said.append(f"{study.planned.title}, `{line.name}`: golden was below sft's from {line.x[at]:.2f} nats of KL to sft on, "
                            f"{line.effects[-1].mean:.3f} instead of {sft.mean:.3f} at the end ({line.x[-1]:.2f} nats).")
    if not any(training_line(study, role) for study in studies.values() for role in TRAINED):
        return [NEED.format(experiments="`testbed` or an experiment on text with a judge")]
    said.insert(0, {
        HOLDS: "Stop early (`policy.max_kl`): a reward fixed once was over-optimised in the end wherever several seeds tell.",
        FAILS: "Nothing had to be stopped within the KL that these runs reached.",
    }.get(tested["over_optimised"].verdict, "Whether golden falls before training ends was not the same everywhere, or could not be told: "
          "set a KL budget (`policy.max_kl`) and look at samples."))
    said.append({
        HOLDS: "An ensemble's disagreement rose as golden fell: stop where it leaves what it was on sft's samples."
               + ("" if tested["beyond_kl"].verdict == HOLDS else " The KL could not be shown to tell less, and costs no ensemble."),
        FAILS: "Do not wait for an ensemble to warn you: its disagreement did not rise as golden fell.",
    }.get(tested["foresees"].verdict, "Whether an ensemble's disagreement warns in time could not be told: do not rely on it."))
    return said


def below(line: Line, sft: Effect) -> int | None:
    """From which point of training on the whole interval of golden lies below that of sft; None: not at the end."""
    is_below = [one is not None and one.high < sft.low for one in line.effects]
    return next((at for at in range(len(is_below)) if all(is_below[at:])), None)


def _by_verdict(claim: Tested) -> str:
    titles = {name: plan.EXPERIMENTS[name].title for name in claim.base}
    return "; ".join(f"{titles[name]} {marked(one, one.text())}" for name, one in claim.base.items())
