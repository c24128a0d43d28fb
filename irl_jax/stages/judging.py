"""A set of responses with their golden scores, log-probs by role and rewards by recipe."""

from __future__ import annotations

import numpy as np

from irl_jax.evaluation import metrics, robust
from irl_jax.stages import scoring


class Judged:
    """`examples` in prompt order. Each quantity is float64 [n] and computed once."""

    def __init__(self, context, judge, examples, logprobs: dict[str, np.ndarray] | None = None):
        self.context, self.judge, self.examples = context, judge, examples
        self._logprobs = dict(logprobs or {})
        self._rewards: dict[str, np.ndarray] = {}
        self._members: dict[str, np.ndarray] = {}
        self._texts: tuple[list[str], list[str]] | None = None

    @property
    def texts(self) -> tuple[list[str], list[str]]:
        """(prompts, responses) as text."""
        if self._texts is None:
            prompts = {example.prompt.tobytes(): example.prompt for example in self.examples}
            asked = {key: self.context.text(prompt) for key, prompt in prompts.items()}
            self._texts = ([asked[e.prompt.tobytes()] for e in self.examples], [self.context.text(e.response) for e in self.examples])
        return self._texts

    @property
    def _places(self) -> list[str]:
        return [f"response {index} that is evaluated" for index in range(len(self.examples))]

    @property
    def lengths(self) -> np.ndarray:
        """Response tokens, EOS included."""
        return np.array([len(example.response) for example in self.examples], np.float64)

    def logprob(self, role: str) -> np.ndarray:
        """log pi_role(y|x), nats per sequence."""
        if role not in self._logprobs:
            logprobs = self.context.scorer.logprobs(self.context.leaves(role), self.examples)
            self._logprobs[role] = scoring.finite(logprobs, f"log-probability under {role}", self._places)
        return self._logprobs[role]

    def reward(self, recipe: str) -> np.ndarray:
        """The recipe's reward: a learnt logit, or one of the controls."""
        if recipe not in self._rewards:
            self._rewards[recipe] = scoring.finite(self._reward(recipe), f"reward '{recipe}'", self._places)
        return self._rewards[recipe]

    def members(self, recipe: str) -> np.ndarray:
        """Rewards by each member of a learnt reward. float64 [E, n]."""
        if recipe not in self._members:
            self._members[recipe] = scoring.member_rewards(self.context, recipe, self.examples)
        return self._members[recipe]

    @property
    def golden(self) -> np.ndarray:
        """The golden reward of each response."""
        return self.reward("golden")

    def _reward(self, recipe: str) -> np.ndarray:
        if recipe == "golden":
            return np.asarray(self.judge.score(*self.texts), np.float64)
        if recipe == "log_ratio":
            return self.logprob("sft") - self.logprob("init")
        if recipe == "mean_logprob":
            return scoring.mean_logprob(self.logprob("sft"), self.examples)
        if recipe == "length":
            return self.lengths
        if recipe == "ended":
            return np.array([example.ended for example in self.examples], np.float64)
        if recipe == "robust":
            terms = scoring.robust_of(self.context).terms
            return robust.combined(terms, {term.reward: self.reward(term.reward) for term in terms}, len(self.examples))
        if recipe == "random":
            return np.random.default_rng([self.context.config.seed, len(self.examples)]).standard_normal(len(self.examples))
        return scoring.combined(self.context, recipe, self.members(recipe))

    def first_of_each_prompt(self) -> list:
        """One response per prompt, so that policies with different numbers of samples compare."""
        return list({example.source: example for example in reversed(self.examples)}.values())

    def by_prompt(self, values: np.ndarray) -> np.ndarray:
        """Values [n] as [P, n / P]; all prompts have equally many samples."""
        prompts = len({example.source for example in self.examples})
        return values.reshape(prompts, -1)

    def summary(self, recipes, has_golden: bool) -> dict:
        """The row of results.json's `policies`."""
        golden, stderr = metrics.mean_stderr(self.by_prompt(self.golden).mean(1)) if has_golden else (None, None)
        tokens = self.lengths.sum()
        return {
            "golden_mean": golden, "golden_stderr": stderr, "length_mean": float(self.lengths.mean()),
            "ended_share": float(np.mean([example.ended for example in self.examples])),
            "distinct_2": metrics.distinct_n([example.response for example in self.first_of_each_prompt()], 2),
            "init_logprob": float(self.logprob("init").sum() / tokens),
            "rewards": {recipe: float(self.reward(recipe).mean()) for recipe in recipes},
            "n": len({example.source for example in self.examples}),
        }
