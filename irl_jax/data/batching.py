"""Examples -> arrays of fixed shape, on the host, and the order in which training sees them.

Prompts and rows are padded on the right with token 0, segment 0, mask 0. Lengths come from a few buckets, so a jitted step compiles only a
few times.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from irl_jax.errors import UserError
from irl_jax.types import Example, PromptBatch, RewardBatch, TokenBatch

GROUPS_A_SHAPE = 4  # fewest groups for which a shape is compiled
PADDING_ID = -1  # PromptBatch.ids of a row that only fills the batch; nothing is sampled for it

Batch = TypeVar("Batch", bound=tuple)


def bucket_length(n: int, maximum: int) -> int:
    """The smallest bucket that holds n tokens: 8, 16, 24, 32, 48, 64, 96, 128, 192, ..., and `maximum` itself.

    Args:
        n: tokens needed, at most `maximum`.
        maximum: tokens, the largest length in use; the top bucket.

    Returns:
        The bucket's length. Above 16 there are two buckets per doubling: compilations stay few, and padding stays under a third.
    """
    if n > maximum:
        raise ValueError(f"{n} tokens do not fit into {maximum}")
    bucket = 8
    while bucket < n:
        power = 1 << (bucket.bit_length() - 1)
        bucket = power * 3 // 2 if bucket == power and bucket >= 16 else (power * 2)
    return min(bucket, maximum)


class Group(NamedTuple):
    """Sequences computed together: their indices, and the tokens that each is padded to."""

    members: list[int]
    length: int


def plan_groups(lengths: Sequence[int], size: int, maximum: int) -> list[Group]:
    """Groups sequences by length into a few buckets, so a program is compiled for few shapes.

    Sequences that don't fill a group move on to the next bucket, so all groups but the last are full. A bucket with fewer than
    GROUPS_A_SHAPE groups moves on too: another compilation would cost more than its padding.

    Args:
        lengths: tokens of each sequence. size: most members of a group. maximum: tokens, the top bucket; calls that share a program give
            the same.
    """
    buckets: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        buckets.setdefault(bucket_length(length, maximum), []).append(i)
    groups: list[Group] = []
    left: list[int] = []
    for bucket in sorted(buckets):
        left += buckets[bucket]
        if len(left) < GROUPS_A_SHAPE * size and bucket < max(buckets):
            continue
        while len(left) >= size:
            groups.append(Group(left[:size], bucket))
            left = left[size:]
    return groups + ([Group(left, max(buckets))] if left else [])


# ---- rows ----


def pack_rows(examples: Sequence[Example], row_tokens: int) -> TokenBatch:
    """Packs sequences into rows, best fit after sorting by descending length; deterministic.

    Args:
        examples: sequences of at most `row_tokens` tokens, prompt and response together.
        row_tokens: tokens per row.

    Returns:
        int32 and float32 arrays [rows, row_tokens]. Every example is in exactly one row, as its own segment.

    Raises:
        UserError: a sequence is longer than a row.
    """
    rows = layout([len(e.prompt) + len(e.response) for e in examples], row_tokens)
    return _fill([[examples[i] for i in row] for row in rows], row_tokens, len(rows))


def layout(lengths: Sequence[int] | np.ndarray, row_tokens: int) -> list[list[int]]:
    """The rows of `pack_rows`: which sequences, of these lengths in tokens, each row has. Raises: as `pack_rows`."""
    rows: list[list[int]] = []
    free: dict[int, list[int]] = {}  # tokens left -> rows with that many left
    sizes: list[int] = []  # the keys of `free`, sorted
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[i] > row_tokens:
            raise UserError(
                f"an example has {lengths[i]} tokens, more than row_tokens = {row_tokens}; raise it to "
                "data.max_prompt_tokens + data.max_response_tokens"
            )
        slot = bisect.bisect_left(sizes, lengths[i])
        if slot == len(sizes):
            row, left = len(rows), row_tokens
            rows.append([])
        else:
            left = sizes[slot]
            row = free[left].pop()
            if not free[left]:
                del free[left], sizes[slot]
        rows[row].append(i)
        left -= lengths[i]
        if left and left not in free:
            bisect.insort(sizes, left)
        if left:
            free.setdefault(left, []).append(row)
    return rows


def token_rows(examples: Sequence[Example], length: int, rows: int | None = None) -> TokenBatch:
    """One sequence per row.

    Args:
        examples: sequences of at most `length` tokens.
        length: tokens per row.
        rows: total rows, the last ones empty (segment 0, mask 0); None makes one per sequence.
    """
    return _fill([[example] for example in examples], length, len(examples) if rows is None else rows)


def reward_rows(examples: Sequence[Example], labels: Sequence[float], length: int, rows: int | None = None) -> RewardBatch:
    """One sequence per row, with its label. Rows that only fill the batch have weight 0.

    Args:
        examples: sequences of at most `length` tokens.
        labels: 1 for positives (demonstrator-like), 0 for negatives, one per example.
        length: tokens per row.
        rows: total rows; None makes one per sequence.
    """
    if len(labels) != len(examples):
        raise ValueError(f"{len(examples)} examples have {len(labels)} labels")
    batch = token_rows(examples, length, rows)
    number = batch.tokens.shape[0]
    last, label, weight = np.zeros(number, np.int32), np.zeros(number, np.float32), np.zeros(number, np.float32)
    last[: len(examples)] = [len(e.prompt) + len(e.response) - 1 for e in examples]
    label[: len(examples)] = labels
    weight[: len(examples)] = 1.0
    return RewardBatch(batch, last, label, weight)


def prompt_batch(prompts: Sequence[np.ndarray], ids: Sequence[int], length: int, rows: int | None = None) -> PromptBatch:
    """Prompts for the sampler. Rows that only fill the batch have id PADDING_ID and one token.

    Args:
        prompts: token ids, 1 to `length` per prompt.
        ids: the prompts' numbers, 0 or more, which key their randomness.
        length: tokens per row.
        rows: total rows; None makes one per prompt.
    """
    number = len(prompts) if rows is None else rows
    if len(ids) != len(prompts) or len(prompts) > number:
        raise ValueError(f"{len(prompts)} prompts with {len(ids)} ids do not make {number} rows")
    tokens, lengths = np.zeros((number, length), np.int32), np.ones(number, np.int32)
    numbers = np.full(number, PADDING_ID, np.int32)
    for row, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= length:
            raise ValueError(f"prompt {ids[row]} has {len(prompt)} tokens; from 1 to {length} fit")
        tokens[row, : len(prompt)] = prompt
        lengths[row] = len(prompt)
    numbers[: len(prompts)] = ids
    return PromptBatch(tokens, lengths, numbers)


def _fill(layout: list[list[Example]], length: int, rows: int) -> TokenBatch:
    if len(layout) > rows:
        raise ValueError(f"{len(layout)} rows do not fit into {rows}")
    tokens, positions, segments = (np.zeros((rows, length), np.int32) for _ in range(3))
    mask = np.zeros((rows, length), np.float32)
    for row, examples in enumerate(layout):
        start = 0
        for segment, example in enumerate(examples, start=1):
            middle = start + len(example.prompt)
            end = middle + len(example.response)
            if end > length or middle == start:
                raise ValueError(f"{end} tokens, {len(example.prompt)} of a prompt, do not make a row of {length}")
            tokens[row, start:middle] = example.prompt
            tokens[row, middle:end] = example.response
            positions[row, start:end] = np.arange(end - start)
            segments[row, start:end] = segment
            mask[row, middle:end] = 1.0
            start = end
    return TokenBatch(tokens, positions, segments, mask)


def take(batch: Batch, indices: np.ndarray) -> Batch:
    """The rows `indices` of every array of a (nested) batch."""
    return type(batch)(*(take(part, indices) if isinstance(part, tuple) else part[indices] for part in batch))


def join(batches: Sequence[Batch]) -> Batch:
    """One batch with the rows of several, in order."""
    columns = zip(*batches, strict=True)
    return type(batches[0])(*(join(parts) if isinstance(parts[0], tuple) else np.concatenate(parts) for parts in columns))


# ---- order ----


def feed(dataset_size: int, batch_size: int, seed: int) -> Callable[[int], np.ndarray]:
    """The training order: step -> indices, by random access, so a resumed run needs no iterator state.

    The order is an endless sequence of epochs. Each epoch is a full pass in its own order. Step s takes items s batch_size to
    (s+1) batch_size - 1 of the sequence. Every batch is full; one that straddles two epochs belongs to both.

    Args:
        dataset_size: items, 1 or more.
        batch_size: items per step.
        seed: of the orders.

    Returns:
        step -> int64 [batch_size]. The same step always gives the same indices.
    """
    import grain

    if dataset_size < 1:
        raise ValueError("there is nothing to feed")
    # grain adds the epoch to its seed: spread ours, or epoch 1 of seed 0 would be epoch 0 of seed 1
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    stream = grain.MapDataset.range(dataset_size).shuffle(seed=spread).repeat()

    def indices(step: int) -> np.ndarray:
        return np.asarray([stream[i] for i in range(step * batch_size, (step + 1) * batch_size)], np.int64)

    return indices
