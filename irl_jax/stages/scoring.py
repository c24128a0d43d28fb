"""Log-probs and rewards of many finished sequences, bucketed by length. Each jitted scorer is traced once per bucket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from irl_jax import artifacts, distributed, progress, reward_steps, sharding, steps, variants
from irl_jax.data import batching
from irl_jax.errors import UserError
from irl_jax.evaluation import robust
from irl_jax.types import Example


def round_up(rows: int, mesh) -> int:
    """Rounds `rows` up to a multiple of the devices that rows are split over."""
    return rows + -rows % sharding.row_multiple(mesh)


def finite(values: np.ndarray, name: str, places: Sequence[str]) -> np.ndarray:
    """The values [n] unchanged. Raises: UserError that names the place of the first one that is NaN or infinite."""
    wrong = np.flatnonzero(~np.isfinite(values))
    if wrong.size:
        raise UserError(f"{places[wrong[0]]}: its {name} came out as {values[wrong[0]]}; such numbers come of broken or of huge weights")
    return values


def examples_of(prompts: list[np.ndarray], tokens: np.ndarray, mask: np.ndarray, ended: np.ndarray) -> list[Example]:
    """Samples [P, K, T] as a flat list of Example, prompt by prompt, with `source` the prompt's number."""
    lengths = mask.sum(-1).astype(int)
    return [Example(prompts[p], tokens[p, k, : lengths[p, k]].astype(np.int32), bool(ended[p, k]), p)
            for p in range(tokens.shape[0]) for k in range(tokens.shape[1])]


def reward_of(context, name: str):
    """(leaves, granularity, combine) of a learnt reward, by its recipe's or variant's name."""
    config = variants.find(context.config, f"reward/{name}").config.reward
    return context.leaves(f"reward/{name}"), config.granularity, config.combine


def rewards(context, name: str, examples: list[Example]) -> np.ndarray:
    """Rewards of responses: a learnt reward by name, "robust", or the closed forms "log_ratio" and "mean_logprob". float64 [n]."""
    if name == "log_ratio":
        return context.scorer.logprobs(context.leaves("sft"), examples) - context.scorer.logprobs(None, examples)
    if name == "mean_logprob":
        return mean_logprob(context.scorer.logprobs(context.leaves("sft"), examples), examples)
    if name == "robust":
        terms = robust_of(context).terms
        return robust.combined(terms, {term.reward: rewards(context, term.reward, examples) for term in terms}, len(examples))
    return combined(context, name, member_rewards(context, name, examples))


def mean_logprob(logprobs: np.ndarray, examples: list[Example]) -> np.ndarray:
    """log pi(y|x) / |y|, nats per token; an empty response counts as one token."""
    return logprobs / np.array([max(1, len(example.response)) for example in examples])


class Robust(NamedTuple):
    """recipe: the chosen learnt reward. terms: those of `robust`; () if its gate is closed. temperature: to sample sft at."""

    recipe: str
    terms: tuple[robust.Term, ...]
    temperature: float


def robust_file(context):
    """W/robust/robust.json, of the stage `robust`."""
    return context.workdir.path / "robust" / "robust.json"


def has_robust(context) -> bool:
    """Whether the run has the reward `robust`."""
    return robust_file(context).exists() and "terms" in artifacts.read_json(robust_file(context))


def robust_of(context) -> Robust:
    """The run's reward `robust`.

    Raises: UserError if it is missing or damaged.
    """
    path = robust_file(context)
    found = artifacts.read_json(path, {"recipe!": str, "terms!": [{"reward!": str, "weight!": float}], "temperature!": float})
    known = (found["recipe"], "mean_logprob")
    if found["recipe"] not in context.config.robust.recipes or any(term["reward"] not in known for term in found["terms"]) or not (
            0 < found["temperature"] <= 1000):
        raise UserError(f"{path}: must have a recipe of robust.recipes, terms of it and of mean_logprob, and a temperature above 0; "
                        f"{artifacts.REMAKE}")
    return Robust(found["recipe"], tuple(robust.Term(term["reward"], term["weight"]) for term in found["terms"]), found["temperature"])


def combined(context, name: str, members_Exn: np.ndarray) -> np.ndarray:
    """Combines the members' rewards as the learnt reward's settings say. float64 [n]."""
    return reward_steps.combined(members_Exn, variants.find(context.config, f"reward/{name}").config.reward.combine, np)


def member_rewards(context, name: str, examples: list[Example]) -> np.ndarray:
    """Rewards by each member of a learnt reward. float64 [E, n]."""
    leaves, granularity, _ = reward_of(context, name)
    return context.scorer.member_rewards(leaves, examples, granularity)


class Scorer:
    """Scores lists of Example with the leaves of any role; holds the compiled steps."""

    def __init__(self, model, mesh, trunk, *, longest: int, rows: int):
        self.model, self.mesh, self.trunk, self.longest = model, mesh, trunk, longest
        self.rows = round_up(rows, mesh)
        self.tokens = 0  # scored so far

        def logprobs(trunk, leaves, batch):
            return steps.score_logprobs(model, trunk, leaves, batch)

        def rewards_as(granularity):
            return lambda trunk, leaves, batch: reward_steps.score_member_rewards(model, trunk, leaves, batch, granularity).T

        self._logprobs = sharding.compile_step(logprobs, mesh)
        self._rewards = {kind: sharding.compile_step(rewards_as(kind), mesh) for kind in ("response", "token")}

    @property
    def traces(self) -> int:
        """Number of times a scorer was traced: once per length bucket and kind of leaves."""
        return self._logprobs.traces + sum(step.traces for step in self._rewards.values())

    def logprobs(self, leaves, examples: list[Example]) -> np.ndarray:
        """log pi(y|x) of each response, nats per sequence, EOS included if sampled. float64 [n]."""
        return self._run(examples, lambda chunk, length: self._logprobs(
            self.trunk, leaves, sharding.put_batch(batching.token_rows(chunk, length, self.rows), self.mesh)).sum(-1))

    def token_logprobs(self, leaves, examples: list[Example]) -> list[np.ndarray]:
        """log pi of each response token given all before it, nats. float64 [tokens] per response, summing to `logprobs`."""
        longest = batching.bucket_length(max((len(e.prompt) + len(e.response) for e in examples), default=1), self.longest)

        def score(chunk, length):
            rows = sharding.put_batch(batching.token_rows(chunk, length, self.rows), self.mesh)
            return jnp.pad(self._logprobs(self.trunk, leaves, rows), ((0, 0), (0, longest - length)))

        scores = self._run(examples, score, (longest,))
        return [row[len(e.prompt) : len(e.prompt) + len(e.response)] for row, e in zip(scores, examples, strict=True)]

    def member_rewards(self, leaves, examples: list[Example], granularity: str = "response") -> np.ndarray:
        """Each member's reward of each response (see `reward_steps.score_member_rewards`). float64 [E, n]."""
        members = jax.tree.leaves(leaves["members"])[0].shape[0] if "members" in leaves else 1
        return self._run(examples, lambda chunk, length: self._rewards[granularity](
            self.trunk, leaves, sharding.put_batch(
                batching.reward_rows(chunk, [1.0] * len(chunk), length, self.rows), self.mesh)), (members,)).T

    def rewards(self, leaves, examples: list[Example], granularity: str = "response", combine: str = "mean") -> np.ndarray:
        """The reward of each response, with members combined by `combine`. float64 [n]."""
        return reward_steps.combined(self.member_rewards(leaves, examples, granularity), combine, np)

    def _run(self, examples, score, inner: tuple[int, ...] = ()) -> np.ndarray:
        out = np.zeros((len(examples), *inner), np.float64)
        sizes = np.array([len(e.prompt) + len(e.response) for e in examples])
        self.tokens += int(sizes.sum())
        pending = None
        groups = batching.plan_groups(sizes.tolist(), self.rows, self.longest)
        for number, (chosen, length) in enumerate(progress.bar(groups, desc="score", unit="batch")):
            distributed.at("scoring", number)
            result = score([examples[i] for i in chosen], length)
            if pending is not None:  # read one batch late: the device never waits for the host
                out[pending[0]] = sharding.fetch(pending[1])[: len(pending[0])]
            pending = (chosen, result)
        if pending is not None:
            out[pending[0]] = sharding.fetch(pending[1])[: len(pending[0])]
        return out
