"""Makes docs/evidence.md and its figures from the records: python -m benchmarks.evidence.write [--records=DIR] [--into=docs]

Any subset of experiments, cells and seeds will do: what is missing is said. The same records give the same page.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Mapping

from benchmarks import robust
from benchmarks.evidence import claims, effects, figures, figures_why, foretell, plan, shortcut, tables
from benchmarks.evidence.advice import advice
from benchmarks.evidence.drawing import Drawn
from benchmarks.evidence.effects import Study
from benchmarks.evidence.run import RECORDS
from irl_jax.errors import UserError

PAGE, FIGURES = "evidence.md", "evidence"

HEAD = """# The evidence: does Inverse-RLignment work, and when?

Made by `python -m benchmarks.evidence.write` from the records in `docs/evidence/records`: change nothing here by hand. The paper is
"Inverse-RLignment" (Sun & van der Schaar, [arXiv 2405.15624](https://arxiv.org/abs/2405.15624)). Neither code nor tables of its
experiments were published, so its figures are read as numbers, and its claims are tested on what can be had here.

```bash
python -m benchmarks.evidence.run testbed            # the embedded testbed: nothing is downloaded
python -m benchmarks.evidence.run testbed --list     # how far the cells are, and their seconds
python -m benchmarks.evidence.run imdb               # movie reviews; imdb_top_p: under the other sampling law
python -m benchmarks.evidence.run paradetox          # detoxifying; paradetox_top_p
python -m benchmarks.evidence.run hh                 # dialogues
python -m benchmarks.evidence.write                  # this page
```

Each goes on where it was stopped. Golden rewards reach no training step and no choice of settings on these seeds. The same commit on the
same processor, with as many cores, gives every number again, the seconds aside: of the 2,858 values of `paradetox_top_p`, seed 2, run
twice from nothing on one machine, 0 differ. With other cores or another processor the sums' last bits differ, and in the end some samples:
on another machine of the same make the cell named below came out with sft's golden 0.4567 instead of 0.4568 and the win rate of best-of-30
by `init_sft` 0.471 instead of 0.475 (standard error over prompts 0.016). `taskset -c 0` in front of one command and `taskset -c 1` of
another run two of them at once. Whether a re-run gives the same record (of the other one with
`paradetox_top_p --seeds=2` and `paradetox_top_p/base/seed-2.json` in their places):

```bash
taskset -c 0 python -m benchmarks.evidence.run testbed --seeds=1 --cells=demonstrations-50 --out=runs/again --records=runs/again/records
python -m benchmarks.evidence.same {runs/again,docs/evidence}/records/testbed/demonstrations-50/seed-1.json
```
"""

RULES = f"""An interval is 95%. With v the effect of each of S seeds and e its standard error over prompts, 1.96 sqrt(sum e²) / S on either
side of the mean is what the prompts of these very runs leave open; the interval over seeds and prompts is the wider of that and
t(0.975, S - 1) std(v) / sqrt(S): every seed has data, prompts, training and samples of its own, so that the spread over seeds holds the
prompts' noise as well, but a few seeds may lie close by chance. With one seed the prompts' is all there is. The error of a difference of
two rewards' win rates takes them for independent (they share samples, so it is too wide).

Effects are positive where they agree with the claim. A claim **holds** where the interval lies above 0; it **does not hold** where the
interval lies below {claims.MARGIN} (of a win rate, of golden, of a share, of a correlation, nats), which is what we call worth having; else
we **cannot tell**. Where the decided verdicts of experiments or of a factor's levels differ, the claim **depends** on what they differ in.
What one seed says is marked and decides nothing: it leaves out how the same training ends with other data and draws. (The rule was written
after the first seed, whose verdicts the next two did not all confirm.)
Many claims are tested, and of twenty true zeros one interval misses its zero."""

ROBUST = """\
The reward `robust` is one number with a temperature and a gate. [robust.md](robust.md) defines it, gives the rule by which it is judged,
and [says what follows](robust.md#the-verdict). The rule was committed before any run below was looked at.

- *best of sft*: over temperatures 1, 0.5, 0.25 and greedy, by golden, for each seed.
- *honest baselines*: sft at those temperatures, and best-of-16 by `mean_logprob`, `ended` and `length` from samples at each. The closest is
  the one with the smallest difference in standard errors.
- *fitted on golden*: the best linear mix of what `robust` could be made of, fitted on the very samples that it chooses from.
- If the gate leaves no term, `robust` stands for sft at its temperature.
- ± is one standard error, of the prompts and of the spread over seeds.

```bash
python -m benchmarks.robust run
```"""

NOTHING = "Not run yet: {what}."


def image(drawn: Drawn) -> str:
    """The figure in Markdown, with its caption."""
    return f"![{drawn.alt.replace('[', '(').replace(']', ')')}]({FIGURES}/{drawn.stem}.png)\n\n{drawn.caption}"


class Page:
    """Sections of text, tables and figures; `drawn` keeps the figures."""

    def __init__(self):
        self.parts: list[str] = []
        self.drawn: list[Drawn] = []

    def add(self, *parts: str | Drawn | None) -> None:
        """Appends parts; what is None or "" is left out."""
        for part in filter(None, parts):
            if isinstance(part, Drawn):
                self.drawn.append(part)
            self.parts.append(image(part) if isinstance(part, Drawn) else part)

    def text(self) -> str:
        """The page."""
        return "\n\n".join(part.strip() for part in self.parts) + "\n"


def make(studies: Mapping[str, Study], judged: Mapping[str, list[dict]]) -> Page:
    """The whole page of the records there are; judged: those of `benchmarks.robust`."""
    page, tested = Page(), claims.test_all(studies)
    page.add(HEAD, "## What was run", tables.state(studies), _missing(studies))
    page.add("## What to do", "Sentences stand here by the verdicts below; their numbers are measured.")
    for question, sentences in advice(studies, tested):
        page.add(f"**{question}**", "\n".join(f"- {sentence}" for sentence in sentences))
    page.add("## Rewards that never lose", ROBUST, robust.table(judged) if judged else NOTHING.format(what="its judgement"),
             _missing_robust(judged))
    for name, records in judged.items():
        page.add(f"### Every reward: {robust.TITLES[name]}", robust.gains(records))
    page.add("## The claims", RULES, tables.claim_table(tested))
    _paper(page, studies)
    _when(page, studies, tested)
    _foretold(page, studies)
    _learnt(page, studies)
    _optimised(page, studies)
    _dialogues(page, studies)
    page.add("## Seconds", "Of the runs' stages and of the analyses, as the records have them; the machines may differ.",
             tables.seconds(studies) or NOTHING.format(what="anything"))
    return page


def _missing(studies: Mapping[str, Study]) -> str:
    """What the plan has and the records have not, in a sentence an experiment."""
    said = [f"`{name}` has not been run." for name in plan.EXPERIMENTS if name not in studies]
    for name, study in studies.items():
        if missing := study.missing():
            more = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
            shown = ", ".join(f"`{one}`" for one in missing[:6]) + more
            said.append(f"Of `{name}` are missing: {shown}.")
    return " ".join(said)


def _missing_robust(judged: Mapping[str, list[dict]]) -> str:
    short = {name: len(judged.get(name, ())) for name, seeds in robust.SEEDS.items() if len(judged.get(name, ())) < len(seeds)}
    missing = [f"`{name}` ({count} of {len(robust.SEEDS[name])} seeds)" for name, count in short.items()]
    return f"Not all is run yet: {', '.join(missing)}." if missing and judged else ""


def _paper(page: Page, studies: Mapping[str, Study]) -> None:
    page.add("## Best-of-N beside the paper", figures.win_rates(studies),
             tables.beside_paper(studies) or NOTHING.format(what="best-of-N with a judge"),
             "Behind ± stands half the 95% interval. The paper's N are 5, 10, 30 and 50, on Anthropic's HH prompts with GPT-4's "
             "demonstrations and a published reward model as golden.")
    laws = tables.sampling_laws(studies)
    page.add("### Under another sampling law", laws or NOTHING.format(what="a text under both laws"), laws and
             f"Win rate of best-of-{claims.N} over one sample of sft, where rewards learn from samples of that law and choose among them; "
             "data, prompts and settings are the same. Behind ± stands half the 95% interval.")


def _when(page: Page, studies: Mapping[str, Study], tested) -> None:
    page.add("## When does it hold?")
    study = studies.get("testbed")
    if not study:
        return page.add(NOTHING.format(what="`testbed`, where one factor at a time is moved"))
    page.add("One factor at a time from the frozen setting of the testbed. With few demonstrations the rewards' prompts are as few, and "
             "SFT takes as many fewer updates: epochs are what is held.")
    drawn = [figures.sweep(study, name) for name in study.planned.factors]
    page.add(*drawn, None if any(drawn) else NOTHING.format(what="two levels of any factor"))
    page.add("Golden of sft, and what best-of-16 by each reward and the trained policies gain over it; behind ± stands half the 95% "
             "interval.", tables.factors(study))
    if table := tables.levels(tested):
        page.add(f"The claims above, level by level: {tables.SIGNS_SAID}", table)
    page.add(figures.capacity(study))


def _foretold(page: Page, studies: Mapping[str, Study]) -> None:
    table = tables.foretold(studies)
    page.add("## What foretells it?", foretell.draw(studies), table or NOTHING.format(what="three runs with a judge"), table and
             f"Spearman's rank correlation with the win rate of best-of-{foretell.N}, over the learnt rewards of all runs, and after each "
             "run's mean is taken from both; 95% by a jackknife over runs. Looked for after the fact, and most runs are of one world: it "
             "describes these runs. The last two rows need labels; the last is what the others could reach at most. What policies and "
             "best-of-N gained over sft is less the same sft's golden, whose error both share.")


def _learnt(page: Page, studies: Mapping[str, Study]) -> None:
    page.add("## What the rewards learnt", figures_why.probes(studies))
    for study in studies.values():
        if plan.BASE not in study.records:
            continue
        page.add(f"### {study.planned.title}: rewards", tables.rewards(study), "`log_ratio` is the closed form that `init_sft` estimates. "
                 "Behind ± stand standard errors over prompts and, after the slash, over seeds.")
        if table := tables.probes(study):
            page.add("How much of it is surface: linear probes on features such as length, openings, tail words and dialect, "
                     "cross-validated by prompt; on the left on the recipe's own held-out examples, on the right among sft's samples of "
                     "one prompt, which is all that best-of-N can use. Behind ± stands half the 95% interval.", table,
                     *shortcut.paragraphs(study))
        if table := tables.matched_pairs(study):
            page.add("Matched pairs of sft's samples of one prompt: mean difference of the reward, in its standard deviations within a "
                     "prompt, for more of a feature at the same golden, and (`golden`) for more golden at the same features.", table)
    if not studies:
        page.add(NOTHING.format(what="anything"))


def _optimised(page: Page, studies: Mapping[str, Study]) -> None:
    page.add("## Along the response", "Compounding error is the paper's reason to go beyond SFT.",
             *(figures_why.shift(study) for study in studies.values()))
    page.add("## Optimising", figures_why.plane(studies),
             "Heterogeneity of a source is the mean of log sft(y|x) - log init(y|x) over its responses y, nats a sequence, less the same "
             "mean over init's own samples: how far it lies along the way that fine-tuning went."
             if studies else NOTHING.format(what="anything"))
    for study in studies.values():
        if plan.BASE in study.records and (table := tables.policies(study)):
            page.add(f"### {study.planned.title}: policies", figures.frontier(study), figures_why.disagreement(study), table,
                     "Behind ± stands half the 95% interval. What the learnt rewards say is in standard deviations of sft's samples, from "
                     "their mean.")


def _dialogues(page: Page, studies: Mapping[str, Study]) -> None:
    page.add("## Dialogues: agreement with human preferences")
    study = studies.get("hh")
    table = study and plan.BASE in study.records and tables.preferences(study)
    page.add(table or NOTHING.format(what="`hh`"), table and "A model this small is asked only whether it is above chance, length and a "
             "bag of words; where it is not told from them, nothing is claimed.")


def write(studies: Mapping[str, Study], judged: Mapping[str, list[dict]], into: pathlib.Path) -> pathlib.Path:
    """Writes INTO/evidence.md and INTO/evidence/*.png; figures of an earlier page that this one has not are removed. Returns the page."""
    page = make(studies, judged)
    folder = into / FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for drawn in page.drawn:
        (folder / f"{drawn.stem}.png").write_bytes(drawn.png)
    (into / PAGE).write_text(page.text(), encoding="utf-8")
    return into / PAGE


def main(argv) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.write", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=pathlib.Path, default=RECORDS)
    parser.add_argument("--into", type=pathlib.Path, default=plan.ROOT / "docs")
    given = parser.parse_args(argv)
    try:
        studies = effects.load(given.records)
        judged = robust.load(robust.everything(), given.records.parent / "robust")
        page, records = write(studies, judged, given.into), (of for study in studies.values() for of in study.records.values())
        print(f"{page}: {sum(map(len, records))} records")
    except UserError as error:
        print(f"benchmarks.evidence: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
