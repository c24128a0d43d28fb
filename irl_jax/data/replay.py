"""The replay buffer: samples of earlier rounds in a ring of fixed capacity. Plain arrays, so a checkpoint can hold it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from irl_jax.types import Example


class Replay(NamedTuple):
    """tokens: int32 [C, T], prompt and response. prompt_lengths, lengths (prompt and response together), sources (the prompt's number):
    int32 [C]. ended: bool [C]. size: how many of the C places are taken. next: the place that the next sample takes."""

    tokens: np.ndarray
    prompt_lengths: np.ndarray
    lengths: np.ndarray
    sources: np.ndarray
    ended: np.ndarray
    size: np.ndarray
    next: np.ndarray


def empty(capacity: int, length: int) -> Replay:
    """A buffer for `capacity` samples of at most `length` tokens, prompt included."""
    def numbers():
        return np.zeros(capacity, np.int32)

    zero = np.zeros((), np.int32)
    return Replay(np.zeros((capacity, length), np.int32), numbers(), numbers(), numbers(), np.zeros(capacity, bool), zero, zero)


def add(buffer: Replay, examples: Sequence[Example]) -> Replay:
    """The buffer with the examples added. If it is full, they replace the oldest.

    Args:
        buffer: not changed. examples: `source` is the prompt's number.
    """
    capacity = len(buffer.lengths)
    if not capacity:
        return buffer
    tokens, prompt_lengths, lengths, sources, ended = (part.copy() for part in buffer[:5])
    start = int(buffer.next)
    for number, example in enumerate(examples):
        place = (start + number) % capacity
        whole = np.concatenate([example.prompt, example.response])
        tokens[place] = 0
        tokens[place, : len(whole)] = whole
        prompt_lengths[place], lengths[place] = len(example.prompt), len(whole)
        sources[place], ended[place] = example.source, example.ended
    size = np.asarray(min(int(buffer.size) + len(examples), capacity), np.int32)
    return Replay(tokens, prompt_lengths, lengths, sources, ended, size, np.asarray((start + len(examples)) % capacity, np.int32))


def draw(buffer: Replay, count: int, rng: np.random.Generator) -> list[Example]:
    """`count` stored samples, drawn uniformly with replacement; none while the buffer is empty."""
    if not buffer.size:
        return []
    return [_example(buffer, place) for place in rng.integers(int(buffer.size), size=count)]


def _example(buffer: Replay, place: int) -> Example:
    tokens, middle = buffer.tokens[place, : buffer.lengths[place]], buffer.prompt_lengths[place]
    return Example(tokens[:middle].copy(), tokens[middle:].copy(), bool(buffer.ended[place]), int(buffer.sources[place]))
