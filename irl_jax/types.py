"""Batch structures and the axis glossary.

Axes, as used in array names: B prompts or rows, K samples per prompt, S prompt tokens, T response tokens (or row length), V vocabulary, D
model width, H heads, L layers, R adapter rank. Log-probs and divergences are in nats.

The EOS token is an action: it is part of the response, of every mask and of every log-prob. A response cut by the length limit has none.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

Array = Any  # jax.Array or numpy.ndarray
PyTree = Any


class Example(NamedTuple):
    """One tokenised (prompt, response) on the host.

    prompt: int32 ids. response: int32 ids, EOS included if `ended`. source: index of the record it came from.
    """

    prompt: np.ndarray
    response: np.ndarray
    ended: bool
    source: int = -1


class Pair(NamedTuple):
    """Two responses to one prompt, the first preferred."""

    chosen: Example
    rejected: Example


class TokenBatch(NamedTuple):
    """Rows of one or several (packed) sequences, prompt followed by response, padded on the right.

    tokens, positions, segments: int32 [B, T]; segments are 1, 2, ... per sequence and 0 at padding; positions restart at
    0 in each segment. mask: float32 [B, T], 1 at response tokens (EOS included): those whose log-prob counts. The log-prob
    of tokens[:, t] is read from the hidden state at t - 1, so mask[:, 0] is always 0, as is the first token of a segment.
    """

    tokens: Array
    positions: Array
    segments: Array
    mask: Array


class Weighted(Protocol):
    """Fields of batches that are never packed. weight: float32 [B], 0 for rows that only pad the batch."""

    @property
    def rows(self) -> TokenBatch: ...

    @property
    def weight(self) -> Array: ...


class RewardBatch(NamedTuple):
    """Single sequences (never packed) with labels.

    last: int32 [B], index of the last response token, where the scalar head reads the logit. label: float32 [B], 1 for positives
    (demonstrator-like), 0 for negatives. weight: float32 [B], 0 for rows that only pad the batch. For Bradley-Terry, rows 0 .. B/2-1 are
    chosen. Rows B/2 .. B-1 are the rejected ones of the same prompts in the same order.
    """

    rows: TokenBatch
    last: Array
    label: Array
    weight: Array


class PolicyBatch(NamedTuple):
    """Sampled sequences with what the policy gradient needs.

    advantage: float32 [B, T], per response token; one for a whole response is repeated at all of its tokens. reference_logprobs and
    behaviour_logprobs: float32 [B, T], aligned with rows.tokens. returns: float32 [B, T], the value head's target before each token; 0
    without a value head. All are 0 where rows.mask is 0. reward: float32 [B], the reward of the whole response before penalties and
    normalisation. weight: float32 [B].
    """

    rows: TokenBatch
    advantage: Array
    reference_logprobs: Array
    behaviour_logprobs: Array
    returns: Array
    reward: Array
    weight: Array


class PromptBatch(NamedTuple):
    """Prompts padded on the right. tokens: int32 [B, S]; lengths: int32 [B]; ids: int32 [B], the prompt's number, which
    keys its randomness."""

    tokens: Array
    lengths: Array
    ids: Array


class SampleBatch(NamedTuple):
    """K sampled responses for each of B prompts.

    tokens: int32 [B, K, T], the pad id after the end. mask: float32 [B, K, T], 1 at response tokens, EOS included. ended: bool [B, K],
    whether EOS was sampled within the limit. behaviour_logprobs: float32 [B, K, T], of the distribution drawn from (after temperature and
    filters). logprobs: float32 [B, K, T], of the model itself (temperature 1, unfiltered), or None if not asked for. Both are 0 where mask
    is 0.
    """

    tokens: Array
    mask: Array
    ended: Array
    behaviour_logprobs: Array
    logprobs: Array | None


class TrainState(NamedTuple):
    """leaves: the role's trainable leaves; opt_state: optax's; step: int32 scalar, steps done; control: what else a step passes to the next
    (a policy's running reward statistics and its tracked KL coefficient)."""

    leaves: PyTree
    opt_state: PyTree
    step: Array
    control: PyTree = ()
