"""The replay buffer: what goes in comes out, the oldest makes room, and the buffer before is left as it was."""

import numpy as np

from irl_jax.data import replay
from irl_jax.types import Example


def example(number, prompt=2, response=3):
    ids = np.arange(prompt + response, dtype=np.int32) + 10 * number
    return Example(ids[:prompt], ids[prompt:], bool(number % 2), number)


def drawn(buffer, count=200):
    return {e.source: e for e in replay.draw(buffer, count, np.random.default_rng(0))}


def test_what_goes_in_comes_out():
    put = [example(1), example(2, prompt=1, response=1), example(3, response=6)]
    buffer = replay.add(replay.empty(4, 8), put)
    got = drawn(buffer)
    assert sorted(got) == [1, 2, 3] and int(buffer.size) == 3
    for e in put:
        np.testing.assert_array_equal(got[e.source].prompt, e.prompt)
        np.testing.assert_array_equal(got[e.source].response, e.response)
        assert got[e.source].ended == e.ended


def test_the_oldest_make_room():
    buffer = replay.empty(3, 8)
    for number in range(5):
        buffer = replay.add(buffer, [example(number)])
    assert sorted(drawn(buffer)) == [2, 3, 4] and int(buffer.size) == 3
    buffer = replay.add(buffer, [example(number) for number in range(5, 12)])  # more than fit at once: the newest stay
    assert sorted(drawn(buffer)) == [9, 10, 11]
    assert drawn(buffer)[9].response.tolist() == example(9).response.tolist()


def test_a_shorter_sample_leaves_nothing_of_the_longer_one_before_it():
    buffer = replay.add(replay.add(replay.empty(1, 8), [example(1, response=6)]), [example(2, response=1)])
    assert len(drawn(buffer)[2].response) == 1 and buffer.tokens[0, 3:].sum() == 0


def test_the_buffer_before_is_untouched_and_an_empty_one_gives_nothing():
    before = replay.empty(2, 8)
    replay.add(before, [example(1)])
    assert int(before.size) == 0 and before.tokens.sum() == 0
    assert replay.draw(before, 5, np.random.default_rng(0)) == []


def test_draws_are_uniform_and_keyed():
    buffer = replay.add(replay.empty(4, 8), [example(number) for number in range(4)])
    counts = np.bincount([e.source for e in replay.draw(buffer, 4000, np.random.default_rng(1))])
    assert counts.min() > 900
    again = [[e.source for e in replay.draw(buffer, 10, np.random.default_rng(3))] for _ in range(2)]
    assert again[0] == again[1]
