"""Log-probs and rewards of many finished sequences, bucketed by length so that each jitted scorer is traced once a bucket."""

from __future__ import annotations

import numpy as np
import tqdm

from irl_jax import sharding, steps
from irl_jax.data import batching
from irl_jax.types import Example


def round_up(rows: int, mesh) -> int:
    """The least multiple of the devices that rows are split over, from `rows` on."""
    return rows + -rows % sharding.row_multiple(mesh)


def examples_of(prompts: list[np.ndarray], tokens: np.ndarray, mask: np.ndarray, ended: np.ndarray) -> list[Example]:
    """Samples [P, K, T] as a flat list of Example, prompt by prompt, with `source` the prompt's number."""
    lengths = mask.sum(-1).astype(int)
    return [Example(prompts[p], tokens[p, k, : lengths[p, k]].astype(np.int32), bool(ended[p, k]), p)
            for p in range(tokens.shape[0]) for k in range(tokens.shape[1])]


class Scorer:
    """Scores lists of Example with the leaves of any role; holds the two compiled steps."""

    def __init__(self, model, mesh, trunk, *, longest: int, rows: int):
        self.mesh, self.trunk, self.longest = mesh, trunk, longest
        self.rows = round_up(rows, mesh)
        self.tokens = 0  # scored so far

        def logprobs(trunk, leaves, batch):
            return steps.score_logprobs(model, trunk, leaves, batch)

        def rewards(trunk, leaves, batch):
            return steps.score_rewards(model, trunk, leaves, batch)

        self._logprobs = sharding.compile_step(logprobs, mesh)
        self._rewards = sharding.compile_step(rewards, mesh)

    @property
    def traces(self) -> int:
        """How often a scorer was traced so far: once a length bucket and kind of leaves."""
        return self._logprobs.traces + self._rewards.traces

    def logprobs(self, leaves, examples: list[Example]) -> np.ndarray:
        """log pi(y|x) of each response, nats a sequence, EOS included where it was sampled. float64 [n]."""
        return self._run(examples, lambda chunk, length: self._logprobs(
            self.trunk, leaves, sharding.put_batch(batching.token_rows(chunk, length, self.rows), self.mesh)).sum(-1))

    def rewards(self, leaves, examples: list[Example]) -> np.ndarray:
        """The reward's logit for each response. float64 [n]."""
        return self._run(examples, lambda chunk, length: self._rewards(
            self.trunk, leaves, sharding.put_batch(
                batching.reward_rows(chunk, [1.0] * len(chunk), length, self.rows), self.mesh)))

    def _run(self, examples, score) -> np.ndarray:
        out = np.zeros(len(examples), np.float64)
        sizes = np.array([len(e.prompt) + len(e.response) for e in examples])
        self.tokens += int(sizes.sum())
        order = np.argsort(sizes, kind="stable")
        pending = None
        for start in tqdm.trange(0, len(order), self.rows, desc="score", unit="batch", leave=False, disable=None):
            chosen = order[start : start + self.rows]
            length = batching.bucket_length(int(sizes[chosen].max()), self.longest)
            result = score([examples[i] for i in chosen], length)
            if pending is not None:  # read one batch late, so that the device never waits for the host
                out[pending[0]] = np.asarray(pending[1])[: len(pending[0])]
            pending = (chosen, result)
        if pending is not None:
            out[pending[0]] = np.asarray(pending[1])[: len(pending[0])]
        return out
