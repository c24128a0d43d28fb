"""Demonstrations that don't fit into memory: they stay in the files of a prepared TFDS builder, and batches are made on demand.

Batch s is a function of s alone. Its rows fall into equal blocks. Block k of the whole run is made from the k-th window of the shuffled
records, which is read by random access, tokenised and packed by itself. (grain's index shuffle needs no memory, however many records there
are.) So a resumed run needs no iterator state, and a host reads only the windows of its own rows, however many hosts there are.

Everything but SFT (evaluation, development, the rewards' demonstrations and prompts, pairs) has a bounded number of its own records in
memory. They are drawn first. Training skips records with a prompt of evaluation or development.
"""

from __future__ import annotations

import itertools
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from irl_jax.data import batching, sources
from irl_jax.data.sources import Corpus, Record, Render, Row
from irl_jax.data.tfds.reading import Source
from irl_jax.errors import UserError
from irl_jax.types import Example, TokenBatch

_SPLIT_STREAM, _PLAN_STREAM = 3, 4  # keep the draws for different purposes apart
_CHUNK = 1024  # records read together when the bounded parts are drawn
_BLOCK = 16  # most rows of a block
_TRIALS, _OVERFULL = 100, 0.05  # windows that the plan tries, and the share of them that may overfill their block


class Stream:
    """Training records on disk. There are `size` of them; those with a `held` prompt are skipped."""

    def __init__(self, data_config, render: Render | None = None):
        """Opens `data_config.source`, a TFDS builder. Raises: UserError as `Source`."""
        self._source = Source(data_config.source, data_config.tfds_split, data_config.tfds_data_dir)
        self.size = min(len(self._source), data_config.max_records or len(self._source))
        self.held: frozenset[str] = frozenset()
        self._fields, self._render = data_config.fields, render

    def files(self) -> list:
        """The files that the records are read from; see `Source.files`."""
        return self._source.files()

    def rows(self, indices) -> list[Row]:
        """The records at these indices, one row each. Raises: UserError, naming the record and the field."""
        return list(sources.pair_rows(self._source.read(indices), self._fields, self._render, pairs_only=False))

    def read(self, indices) -> list[Record]:
        """The training records among those at these indices."""
        return [Record(row.prompt, row.response) for row in self.rows(indices) if row.prompt not in self.held]


def load(data_config, seed: int, render: Render | None = None) -> tuple[Corpus, Stream]:
    """Opens the configured source and draws the bounded parts.

    Args:
        data_config, seed, render: as for `sources.load_corpus`. Every part of the corpus has at most `streaming_records` records.

    Returns:
        (corpus, stream). The corpus's training records are a sample of the stream's. The stream holds out evaluation and development.

    Raises:
        UserError: the source cannot be read, or has no record for training or evaluation.
    """
    stream, most = Stream(data_config, render), data_config.streaming_records
    counts: Counter[str] = Counter()
    rows = _shuffled(stream, seed)
    held: set[str] = set()
    if data_config.eval_source:
        evaluation = sources.read_rows(data_config.eval_source, data_config, seed, render, counts)[:most]
        held.update(row.prompt for row in evaluation)
    else:
        evaluation = _new_prompts(rows, min(most, sources.share(data_config.heldout_fraction, stream.size, "data.heldout_fraction")), held)
    number = sources.share(data_config.development_fraction, stream.size, "data.development_fraction")
    development = _new_prompts(rows, min(most, number), held)
    train = list(itertools.islice((row for row in rows if row.prompt not in held), most))
    for name, part in (("evaluation", evaluation), ("training", train)):
        if not part:
            prompts = f" ({len(held)} distinct prompts are held out, and training has none of those)" if held else ""
            raise UserError(f"{data_config.source}: no record is left for {name} out of {stream.size}{prompts}; see data.heldout_fraction, "
                            "data.development_fraction and data.eval_source, or give records of more prompts")
    stream.held = frozenset(held)
    learnt, tuned, judged = ([Record(row.prompt, row.response) for row in part] for part in (train, development, evaluation))
    pairs = sources.load_pairs(data_config, seed, render, train, tuned + judged, counts)[:most]
    turns = {row.prompt: row.turns for row in (*train, *development, *evaluation) if row.turns}
    left_out = types.MappingProxyType({name: number for name, number in counts.items() if number})
    return Corpus(learnt, tuned, judged, pairs, left_out, turns, stream.size), stream


def _shuffled(stream: Stream, seed: int) -> Iterator[Row]:
    """Every record once, shuffled by the seed."""
    if not stream.size:
        return
    chunk = min(_CHUNK, stream.size)
    order = batching.feed(stream.size, chunk, int(np.random.SeedSequence([seed, _SPLIT_STREAM]).generate_state(1)[0]))
    for start in range(0, stream.size, chunk):
        yield from stream.rows(order(start // chunk)[: stream.size - start])


def _new_prompts(rows: Iterator[Row], number: int, held: set[str]) -> list[Row]:
    """The next rows with up to `number` prompts that are not in `held` yet. Adds these prompts to `held`."""
    taken: list[Row] = []
    while len(taken) < number and (row := next(rows, None)) is not None:
        if row.prompt not in held:
            held.add(row.prompt)
            taken.append(row)
    return taken


# ---- blocks ----


class Plan(NamedTuple):
    """How batches are made: `blocks` of `rows` rows of `length` tokens, from `window` records each. `packing`: several records per row."""

    blocks: int
    rows: int
    length: int
    window: int
    packing: bool


def plan(lengths: Sequence[int], batch_size: int, length: int, packing: bool, seed: int) -> Plan:
    """Chooses the blocks and, if rows are packed, how many records a block's window has.

    That number depends on the lengths of a sample of the records: as many as fit into the block in all but a few of the windows tried (see
    `Blocks` for those few). Blocks have up to 16 rows, so hosts share a batch without reading each other's records. A batch whose size has
    no divisor between 4 and 16 is one block.

    Args:
        lengths: tokens of a sample of the records. batch_size: rows per step. length: tokens per row, at least those of the longest record.
        packing: several records per row. seed: of the windows tried.
    """
    rows = max(divisor for divisor in range(1, _BLOCK + 1) if batch_size % divisor == 0)
    rows = batch_size if rows < 4 else rows
    if not packing:
        return Plan(batch_size // rows, rows, length, rows, False)
    generator = np.random.default_rng([seed, _PLAN_STREAM])
    tokens = np.asarray(lengths)
    most = 2 * rows * length // max(1, int(tokens.mean())) + rows
    fitting = [_fitting(tokens[generator.integers(len(tokens), size=most)], rows, length) for _ in range(_TRIALS)]
    window = int(np.quantile(fitting, _OVERFULL, method="lower"))
    return Plan(batch_size // rows, rows, length, window, True)


def _fitting(lengths: np.ndarray, rows: int, length: int) -> int:
    """How many of the first sequences can be packed into the rows, by bisection. One per row always fits."""
    low, high = min(rows, len(lengths)), int(np.searchsorted(np.cumsum(lengths), rows * length, side="right"))
    if len(batching.layout(lengths[:high], length)) <= rows:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(batching.layout(lengths[:middle], length)) <= rows else (low, middle)
    return low


class Blocks:
    """block(k), the k-th block of a run: (rows, number of records in its window that didn't fit). A function of k alone.

    If a window overfills its block, this pass leaves out its last records. The next pass has another order and other windows.
    """

    def __init__(self, stream: Stream, encode: Callable[[list[Record]], list[Example]], plan: Plan, seed: int):
        self._stream, self._encode, self._plan = stream, encode, plan
        self._indices = batching.feed(stream.size, plan.window, seed)

    def __call__(self, number: int) -> tuple[TokenBatch, int]:
        rows, length = self._plan.rows, self._plan.length
        examples = self._encode(self._stream.read(self._indices(number)))
        if not self._plan.packing:
            return batching.token_rows(examples, length, rows), 0
        room = _fitting(np.asarray([len(e.prompt) + len(e.response) for e in examples], np.int64), rows, length)
        packed = batching.pack_rows(examples[:room], length)
        empty = batching.token_rows([], length, rows - len(packed.tokens))
        return batching.join([packed, empty]), len(examples) - room

    def part(self, step: int, start: int, stop: int) -> tuple[TokenBatch, int]:
        """Rows start to stop - 1 of a step's batch, and how many records their blocks left out. Rows past the last block are empty."""
        per, last = self._plan.rows, self._plan.rows * self._plan.blocks
        first, end = start // per, -(-min(stop, last) // per)
        made = [self(step * self._plan.blocks + block) for block in range(first, end)]
        empty = batching.token_rows([], self._plan.length, max(0, stop - max(start, last)))
        whole = batching.join([*(batch for batch, _ in made), empty])
        skip = start - first * per if made else 0
        return batching.take(whole, np.arange(skip, skip + stop - start)), sum(number for _, number in made)
