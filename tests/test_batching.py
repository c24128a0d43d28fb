"""Batching: nothing lost or doubled, masks and positions right, and an order that needs no state."""

import pathlib
import runpy

import numpy as np
import pytest

from irl_jax.data.batching import (
    PADDING_ID,
    bucket_length,
    feed,
    pack_rows,
    prompt_batch,
    reward_rows,
    take,
    token_rows,
)
from irl_jax.errors import UserError
from irl_jax.stages.context import Context
from irl_jax.types import Example


def example(prompt, response, start=1):
    tokens = np.arange(start, start + prompt + response, dtype=np.int32)
    return Example(tokens[:prompt], tokens[prompt:], True)


def random_examples(number, seed=0):
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 12, size=(number, 2))
    return [example(int(p), int(r), start=100 * i + 1) for i, (p, r) in enumerate(sizes)]


def unpack(batch):
    """{first token: (tokens, positions, mask)} of every segment."""
    found = {}
    for tokens, positions, segments, mask in zip(*batch, strict=True):
        for segment in range(1, segments.max() + 1):
            (where,) = np.nonzero(segments == segment)
            assert (np.diff(where) == 1).all()
            found[int(tokens[where[0]])] = (tokens[where].tolist(), positions[where].tolist(), mask[where].tolist())
    return found


def test_packing_loses_nothing_and_keeps_masks_and_positions():
    examples = random_examples(200)
    batch = pack_rows(examples, 32)
    found = unpack(batch)
    assert len(found) == 200
    for e in examples:
        tokens, positions, mask = found[int(e.prompt[0])]
        assert tokens == [*e.prompt, *e.response]
        assert positions == list(range(len(tokens)))
        assert mask == [0.0] * len(e.prompt) + [1.0] * len(e.response)
    padding = batch.segments == 0
    assert (batch.tokens[padding] == 0).all() and (batch.mask[padding] == 0).all() and (batch.positions[padding] == 0).all()
    assert batch.mask.sum() == sum(len(e.response) for e in examples)
    assert (batch.mask[batch.positions == 0] == 0).all()
    assert batch.mask.dtype == np.float32 and {a.dtype for a in batch[:3]} == {np.dtype(np.int32)}


def test_packing_fills_well_and_is_deterministic():
    examples = random_examples(300)
    batch = pack_rows(examples, 32)
    total = sum(len(e.prompt) + len(e.response) for e in examples)
    assert batch.tokens.shape[0] <= -(-total // 32) + 1
    for ours, again in zip(batch, pack_rows(examples, 32), strict=True):
        np.testing.assert_array_equal(ours, again)
    exact = pack_rows([example(1, 5), example(2, 1), example(1, 3), example(2, 4)], 9)  # 6 + 3, 4 and 6 cannot meet
    assert exact.tokens.shape == (3, 9) and sorted((exact.segments > 0).sum(axis=1)) == [4, 6, 9]


def test_packing_refuses_what_no_row_holds():
    with pytest.raises(UserError, match="an example has 10 tokens, more than row_tokens = 9"):
        pack_rows([example(5, 5)], 9)


def test_a_response_without_a_prompt_has_nothing_to_be_read_from():
    with pytest.raises(ValueError, match="0 of a prompt"):
        token_rows([example(0, 3)], 8)


def test_token_rows():
    batch = token_rows([example(2, 2), example(1, 1, start=9)], 5, rows=3)
    np.testing.assert_array_equal(batch.tokens, [[1, 2, 3, 4, 0], [9, 10, 0, 0, 0], [0] * 5])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 2, 3, 0], [0, 1, 0, 0, 0], [0] * 5])
    np.testing.assert_array_equal(batch.segments, [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0] * 5])
    np.testing.assert_array_equal(batch.mask, [[0, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0] * 5])
    with pytest.raises(ValueError, match="do not make a row of 3"):
        token_rows([example(2, 2)], 3)
    with pytest.raises(ValueError, match="2 rows do not fit into 1"):
        token_rows([example(2, 2)] * 2, 4, rows=1)


def test_reward_rows():
    batch = reward_rows([example(2, 3), example(1, 1)], [1, 0], 6, rows=4)
    np.testing.assert_array_equal(batch.last, [4, 1, 0, 0])
    np.testing.assert_array_equal(batch.label, [1, 0, 0, 0])
    np.testing.assert_array_equal(batch.weight, [1, 1, 0, 0])
    assert batch.rows.tokens.shape == (4, 6) and batch.rows.tokens[0, 4] == 5
    chosen = take(batch, np.asarray([1, 0, 1]))
    np.testing.assert_array_equal(chosen.last, [1, 4, 1])
    np.testing.assert_array_equal(chosen.rows.tokens[1], batch.rows.tokens[0])
    with pytest.raises(ValueError, match="have 1 labels"):
        reward_rows([example(1, 1)] * 2, [1], 6)


def test_prompt_batch():
    batch = prompt_batch([np.asarray([5, 6]), np.asarray([7])], [3, 8], 4, rows=3)
    np.testing.assert_array_equal(batch.tokens, [[5, 6, 0, 0], [7, 0, 0, 0], [0] * 4])
    np.testing.assert_array_equal(batch.lengths, [2, 1, 1])
    np.testing.assert_array_equal(batch.ids, [3, 8, PADDING_ID])
    with pytest.raises(ValueError, match="from 1 to 4 fit"):
        prompt_batch([np.asarray([], np.int32)], [0], 4)


def test_buckets_are_few_monotone_and_close():
    buckets = [bucket_length(n, 1024) for n in range(1, 1025)]
    assert all(n <= b <= max(8, 2 * n) for n, b in enumerate(buckets, start=1)) and buckets == sorted(buckets)
    assert sorted(set(buckets)) == [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
    assert bucket_length(40, 45) == 45 and bucket_length(5, 6) == 6
    with pytest.raises(ValueError, match="7 tokens do not fit into 6"):
        bucket_length(7, 6)


def test_feed_makes_full_passes_in_new_orders():
    batches = feed(10, 4, seed=0)
    stream = np.concatenate([batches(step) for step in range(10)])
    epochs = stream.reshape(4, 10)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert all(batches(step).shape == (4,) for step in range(10))


def test_feed_is_random_access_and_depends_on_the_seed():
    batches = feed(1000, 8, seed=5)
    straight = [batches(step) for step in range(300)]
    resumed = feed(1000, 8, seed=5)
    for step in (299, 0, 125, 126):  # 125 begins the second epoch
        np.testing.assert_array_equal(resumed(step), straight[step])
    assert (feed(1000, 8, seed=6)(125) != straight[125]).any()
    second_epoch_of_5 = np.concatenate(straight[125:250])
    first_epoch_of_6 = np.concatenate([feed(1000, 8, seed=6)(step) for step in range(125)])
    assert (second_epoch_of_5 != first_epoch_of_6).any()


def test_feed_fills_batches_larger_than_the_data():
    assert sorted(feed(3, 7, seed=0)(0)[:6]) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="nothing to feed"):
        feed(0, 4, seed=0)


@pytest.mark.shared
def test_movie_reviews_fill_their_rows(shared, monkeypatch):
    """configs/imdb.py's demonstrations in its rows: at least 95% of the positions hold a token."""
    monkeypatch.setenv("IRL_JAX_SHARED", str(shared))
    path = pathlib.Path(__file__).resolve().parent.parent / "configs" / "imdb.py"
    config = runpy.run_path(str(path))["get_config"]()
    rows = pack_rows(Context(config, None).demonstrations, config.sft.row_tokens)
    assert np.mean(rows.segments > 0) >= 0.95
