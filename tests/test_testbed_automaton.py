"""The automaton's law: the forward algorithm against enumeration, normalisation, and its own samples."""

import itertools

import numpy as np
import pytest
from scipy import sparse

from irl_jax.data.testbed import automaton as am

EOS = 3


def toy(noise=0.2):
    """States 0, 1 emit, 2 is final; tokens a=0, b=1, c=2, EOS=3; slot 0 says b in group 0 and c in group 1."""
    return am.check(
        am.Automaton(
            start=np.array([0.7, 0.3, 0.0]),
            transition=sparse.csr_matrix([[0.2, 0.5, 0.3], [0.6, 0.0, 0.4], [0.0, 0.0, 1.0]]),
            tokens=sparse.csr_matrix([[0.9, 0.0, 0.1, 0.0], [0.25, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]),
            slots=sparse.csr_matrix([[0.0], [0.75], [0.0]]),
            bindings=np.array([[[0.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 0.0]]]),
            noise_tokens=np.array([0.4, 0.3, 0.1, 0.2]),
            noise=noise,
            eos=EOS,
        )
    )


def told(a, group, sequence):
    """Probability of a sequence by following the generative story over every path, one branch at a time."""

    def rest(state, tokens):
        if not tokens:
            return 1.0
        token, after = tokens[0], tokens[1:]
        clean = (1 - a.noise) * (a.tokens[state, token] + a.slots[state, 0] * a.bindings[group, 0, token])
        noise = a.noise * a.noise_tokens[token]
        if token == EOS:
            return clean + noise
        moved = sum(a.transition[state, s] * rest(s, after) for s in range(3) if a.transition[state, s])
        return (clean + noise / 2) * moved + noise / 2 * rest(state, after)

    return sum(p * rest(s, sequence) for s, p in enumerate(a.start) if p)


def test_forward_equals_enumeration_of_paths():
    a = toy()
    sequences = [list(s) for n in (1, 2, 3, 4) for s in itertools.product(range(3), repeat=n)]
    sequences += [s + [EOS] for s in [[]] + sequences]
    for group in (0, 1):
        logp, _ = am.token_logprobs(a, np.full(len(sequences), group), sequences)
        expected = [told(a, group, s) for s in sequences]
        np.testing.assert_allclose([np.exp(x.sum()) for x in logp], expected, rtol=1e-12)


def test_finished_and_unfinished_sequences_of_one_length_limit_sum_to_one():
    a, limit = toy(), 5
    finished = [list(s) + [EOS] for n in range(limit) for s in itertools.product(range(3), repeat=n)]
    unfinished = [list(s) for s in itertools.product(range(3), repeat=limit)]
    logp, _ = am.token_logprobs(a, np.zeros(len(finished + unfinished), int), finished + unfinished)
    assert abs(sum(np.exp(x.sum()) for x in logp) - 1) < 1e-12


def test_samples_follow_the_law():
    a, n = toy(), 60000
    rng = np.random.default_rng(0)
    groups = np.arange(n) % 2
    samples = am.sample(a, groups, rng)
    counts = {}
    for g, s in zip(groups.tolist(), samples, strict=True):
        assert s[-1] == EOS and EOS not in s[:-1]
        counts[g, tuple(s)] = counts.get((g, tuple(s)), 0) + 1
    checked = 0
    for (g, s), count in counts.items():
        p = told(a, g, list(s)) if len(s) < 6 else 0
        if p > 0.003:
            checked += 1
            assert abs(count / (n / 2) - p) < 4.5 * np.sqrt(p * (1 - p) / (n / 2)), (g, s)
    assert checked > 25
    # Entropy, half of each group, against the same sum over enumerated sequences (what is longer carries little).
    logp, _ = am.token_logprobs(a, groups, samples)
    short = [list(s) + [EOS] for k in range(8) for s in itertools.product(range(3), repeat=k)]
    exact = [np.exp([x.sum() for x in am.token_logprobs(a, np.full(len(short), g), short)[0]]) for g in (0, 1)]
    short_entropy = np.mean([-(p * np.log(p)).sum() for p in exact])
    drawn = np.array([-x.sum() if len(x) <= 8 else 0.0 for x in logp])
    assert abs(drawn.mean() - short_entropy) < 4.5 * drawn.std() / np.sqrt(n)


def test_posterior_of_noise_is_one_where_only_noise_explains_a_token():
    a = toy(noise=0.01)
    _, noise = am.token_logprobs(a, np.array([0]), [[1, EOS]])
    # start: state 0 never says b, state 1 does with 0.75
    clean, noisy = 0.99 * 0.3 * 0.75, 0.01 * 0.3
    np.testing.assert_allclose(noise[0][0], noisy / (clean + noisy), rtol=1e-12)


def test_ids_out_of_range_and_tokens_after_eos_are_refused():
    for bad in ([[4]], [[-1]], [[EOS, 0]]):
        with pytest.raises(ValueError, match="sequence 0"):
            am.token_logprobs(toy(), np.array([0]), bad)
    assert am.token_logprobs(toy(), np.zeros(0, int), []) == ([], [])
