"""A probabilistic automaton with a noise channel: exact sampling and the forward algorithm, vectorised over sequences.

The law: state s is about to emit. With probability 1 - noise it emits a token from its own emission distribution and moves to
s' ~ transition[s]. With probability noise the token is drawn from `noise_tokens` instead, whatever the state. The state then moves as
intended or stays, with probability 1/2 each. EOS, emitted either way, ends the sequence. Only the final state emits EOS itself, and it is
its own successor. Emission distributions are mixtures of tokens and *slots*. What a slot says depends on the sequence's group (the prompt's
topic), so one automaton serves all groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse


class Automaton(NamedTuple):
    """start: [S] probabilities. transition: sparse [S, S], rows sum to 1. tokens: sparse [S, V] and slots: sparse [S, M], emission weights
    that sum to 1 over both. bindings: [G, M, V], what each slot says in each group. noise_tokens: [V] probabilities. noise: probability
    of noise per token. eos: id."""

    start: np.ndarray
    transition: sparse.csr_matrix
    tokens: sparse.csr_matrix
    slots: sparse.csr_matrix
    bindings: np.ndarray
    noise_tokens: np.ndarray
    noise: float
    eos: int


def check(a: Automaton) -> Automaton:
    """Asserts that every distribution sums to 1; returns the automaton."""
    emission = np.asarray(a.tokens.sum(1)).ravel() + np.asarray(a.slots.sum(1)).ravel()
    assert abs(a.start.sum() - 1) < 1e-12 and abs(a.noise_tokens.sum() - 1) < 1e-12
    assert np.abs(np.asarray(a.transition.sum(1)).ravel() - 1).max() < 1e-12 and np.abs(emission - 1).max() < 1e-12
    used = np.unique(a.slots.indices)
    assert np.abs(a.bindings[:, used].sum(-1) - 1).max() < 1e-12
    return a


def _cumulative_rows(matrix: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Rows as padded tables (cumulative probabilities, columns), to draw from many rows at once."""
    counts = np.diff(matrix.indptr)
    probs, columns = np.zeros((len(counts), counts.max())), np.zeros((len(counts), counts.max()), np.int64)
    inside = np.arange(counts.max())[None, :] < counts[:, None]
    probs[inside], columns[inside] = matrix.data, matrix.indices
    cumulative = np.cumsum(probs, axis=1)
    cumulative[np.arange(counts.max())[None, :] >= counts[:, None] - 1] = np.inf  # the last entry takes what rounding leaves
    return cumulative, columns


def sample(a: Automaton, groups: np.ndarray, rng: np.random.Generator) -> list[list[int]]:
    """Draws one sequence of the law per group number, EOS included."""
    n, vocab = len(groups), a.tokens.shape[1]
    move_cum, move_to = _cumulative_rows(a.transition)
    emit_cum, emit_what = _cumulative_rows(sparse.hstack([a.tokens, a.slots]).tocsr())
    bound_cum, noise_cum = np.cumsum(a.bindings, axis=-1), np.cumsum(a.noise_tokens)
    state = np.minimum(np.searchsorted(np.cumsum(a.start), rng.random(n), side="right"), len(a.start) - 1)
    active = np.arange(n)
    out: list[list[int]] = [[] for _ in range(n)]
    while len(active):
        s, u = state[active], rng.random((len(active), 5))
        token = emit_what[s, (emit_cum[s] <= u[:, :1]).sum(1)]
        slot = np.flatnonzero(token >= vocab)
        if len(slot):
            cum = bound_cum[groups[active[slot]], token[slot] - vocab]
            token[slot] = (cum <= u[slot, 1:2] * cum[:, -1:]).sum(1)
        noisy = u[:, 2] < a.noise
        token[noisy] = np.searchsorted(noise_cum, u[noisy, 1] * noise_cum[-1], side="right")
        stays = noisy & (u[:, 3] < 0.5)
        moved = move_to[s, (move_cum[s] <= u[:, 4:]).sum(1)]
        state[active] = np.where(stays, s, moved)
        for i, t in zip(active.tolist(), token.tolist(), strict=True):
            out[i].append(t)
        active = active[token != a.eos]
    return out


def token_logprobs(a: Automaton, groups: np.ndarray, sequences: Sequence[Sequence[int]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Log-probability of each token given those before it, by the scaled forward algorithm in float64.

    log p(x_t | x_<t) = log sum_s alpha_t(s) [(1 - noise) E(s, x_t) + noise * noise_tokens(x_t)]. The filtered posterior that
    token t is noise is noise * noise_tokens(x_t) / p(x_t | x_<t).

    Args:
      groups: [n] group numbers. sequences: token ids, EOS at most once and last. Without EOS the result is for a prefix.
    Returns:
      (log-probs in nats, posteriors of noise): a float64 array per sequence.
    Raises:
      ValueError: an id is outside the vocabulary, or a token follows EOS.
    """
    vocab = a.tokens.shape[1]
    for i, sequence in enumerate(sequences):
        if any(not 0 <= t < vocab for t in sequence) or a.eos in list(sequence)[:-1]:
            raise ValueError(f"sequence {i}: ids must lie in [0, {vocab}) and EOS may only be the last")
    lengths = np.array([len(s) for s in sequences], np.int64)
    order = np.argsort(-lengths, kind="stable")
    logp, posterior = [np.zeros(n) for n in lengths], [np.zeros(n) for n in lengths]
    for chunk in np.array_split(order, max(1, -(-len(order) // 128))):
        _forward(a, groups, sequences, lengths, chunk, logp, posterior)
    return logp, posterior


def _forward(a, groups, sequences, lengths, chunk, logp, posterior) -> None:
    """Forward pass over the sequences of `chunk` (sorted by descending length). Writes into logp and posterior."""
    emit, step_back, vocab = sparse.hstack([a.tokens, a.slots]).tocsr(), a.transition.T.tocsr(), a.tokens.shape[1]
    alpha = np.repeat(a.start[:, None], len(chunk), axis=1)
    for t in range(int(lengths[chunk[0]]) if len(chunk) else 0):
        live = chunk[: int((lengths[chunk] > t).sum())]
        x, alpha = np.array([sequences[i][t] for i in live]), alpha[:, : len(live)]
        says = np.zeros((emit.shape[1], len(live)))  # probability that each token and each slot says x
        says[x, np.arange(len(live))] = 1.0
        says[vocab:] = a.bindings[groups[live], :, x].T
        clean = (1 - a.noise) * alpha * (emit @ says)
        noise = a.noise * a.noise_tokens[x] * alpha
        p_noise = noise.sum(0)
        p = clean.sum(0) + p_noise
        for row, i in enumerate(live):
            logp[i][t], posterior[i][t] = np.log(p[row]), p_noise[row] / p[row]
        alpha = (step_back @ (clean + noise / 2) + noise / 2) / p
