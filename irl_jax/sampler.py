"""The generation loop: K responses a prompt from one prefill, and their exact log-probs.

Reward data, evaluation and policy gradient sample at temperature 1, unfiltered. Temperature, top-k and top-p are for
`generate`; the log-probs of the distribution drawn from (behaviour) and those of the model are then two things.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from irl_jax import distributed
from irl_jax.data.batching import PADDING_ID, bucket_length, prompt_batch
from irl_jax.errors import UserError
from irl_jax.models.transformer import ModelConfig, decode, init_response_cache, prefill, unstack
from irl_jax.sharding import fetch
from irl_jax.types import Array, PromptBatch, PyTree, SampleBatch

Sampler = Callable[[PyTree, PromptBatch, Array], SampleBatch]

_BLOCK = 64  # tokens of the vocabulary summed together in the inverse CDF


class _Settings(NamedTuple):
    """make_sampler's arguments."""

    samples: int
    max_tokens: int
    eos_ids: tuple[int, ...]
    pad_id: int
    temperature: float
    top_k: int
    top_p: float
    with_logprobs: bool


def make_sampler(
    config: ModelConfig,
    *,
    samples: int,
    max_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    with_logprobs: bool = False,
) -> Sampler:
    """Makes sample(variables, prompts, key) -> SampleBatch: pure, to be jitted once and called with any shapes of prompts.

    Token t of sample k of prompt i is drawn by the first word of fold_in(fold_in(fold_in(key, i), k), t) through the
    inverse of the cumulative distribution, so it depends on neither its row, its neighbours, K, nor the mesh. Decoding
    stops when every response has ended.

    Args:
        config: the model's.
        samples: K, responses a prompt.
        max_tokens: T, tokens a response, EOS included.
        eos_ids: tokens that end a response; each is part of it.
        pad_id: fills the tokens after the end.
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: draw among the k likeliest tokens (ties with the last included); 0 among all.
        top_p: draw among the fewest likeliest tokens whose probability reaches this (ties included); 1 among all. Applied
            after the temperature and top_k.
        with_logprobs: also return the model's own log-probs (temperature 1, unfiltered).

    Returns:
        sample. Prompts with id PADDING_ID get no tokens.

    Raises:
        UserError: a setting out of its range.
    """
    if samples < 1 or max_tokens < 1 or not 0 <= temperature < float("inf") or top_k < 0 or not 0 < top_p <= 1:
        raise UserError(
            f"sampling with samples = {samples}, max_tokens = {max_tokens}, temperature = {temperature}, top_k = {top_k}, "
            f"top_p = {top_p}: the first two must be 1 or more, the next two 0 or more, and top_p in (0, 1]"
        )
    settings = _Settings(samples, max_tokens, tuple(eos_ids), pad_id, temperature, top_k, top_p, with_logprobs)
    return functools.partial(_sample, config, settings)


def _sample(config: ModelConfig, settings: _Settings, variables: PyTree, prompts: PromptBatch, key) -> SampleBatch:
    B, K, T = prompts.ids.shape[0], settings.samples, settings.max_tokens
    variables = unstack(config, variables)
    uniform_BxKxT = _uniforms(key, prompts.ids, K, T)
    idle = jnp.broadcast_to((prompts.ids == PADDING_ID)[:, None], (B, K))
    logits_BxV, prompt_cache = prefill(config, variables, prompts.tokens, prompts.lengths)
    logits_BxKxV = jnp.broadcast_to(logits_BxV[:, None], (B, K, logits_BxV.shape[-1]))
    token, out = _step(settings, 0, logits_BxKxV, uniform_BxKxT, idle, _nothing(settings, B))
    cache = init_response_cache(config, B, K, max(T - 1, 1))  # the last token is never fed back

    def unfinished(carry):
        t, _, _, out = carry
        return (t < T) & ~jnp.all(out.ended | idle)

    def body(carry):
        t, token, cache, out = carry
        logits, cache = decode(config, variables, token, t - 1, prompts.lengths, prompt_cache, cache)
        token, out = _step(settings, t, logits, uniform_BxKxT, idle, out)
        return t + 1, token, cache, out

    return lax.while_loop(unfinished, body, (jnp.int32(1), token, cache, out))[-1]


def _nothing(settings: _Settings, batch: int) -> SampleBatch:
    """No token drawn yet."""
    shape = (batch, settings.samples, settings.max_tokens)
    return SampleBatch(
        tokens=jnp.full(shape, settings.pad_id, jnp.int32),
        mask=jnp.zeros(shape, jnp.float32),
        ended=jnp.zeros(shape[:2], bool),
        behaviour_logprobs=jnp.zeros(shape, jnp.float32),
        logprobs=jnp.zeros(shape, jnp.float32) if settings.with_logprobs else None,
    )


def _step(settings: _Settings, t, logits_BxKxV, uniform_BxKxT, idle, out: SampleBatch) -> tuple[Array, SampleBatch]:
    """Draws token t of every response that has not ended, and writes down what is to be known of it."""
    if settings.temperature == 0:
        token = jnp.argmax(logits_BxKxV, axis=-1).astype(jnp.int32)
        behaviour = jnp.zeros(token.shape, jnp.float32)  # it had no choice: log 1
    else:
        drawn_from = filter_logits(logits_BxKxV, settings.temperature, settings.top_k, settings.top_p)
        token = draw(drawn_from, lax.dynamic_index_in_dim(uniform_BxKxT, t, axis=2, keepdims=False))
        behaviour = _logprob(drawn_from, token)
    live = ~(out.ended | idle)
    write = lambda whole, part: lax.dynamic_update_index_in_dim(whole, part.astype(whole.dtype), t, axis=2)
    logprobs = None
    if settings.with_logprobs:
        logprobs = write(out.logprobs, jnp.where(live, _logprob(logits_BxKxV, token), 0.0))
    is_eos = jnp.isin(token, jnp.asarray(settings.eos_ids, jnp.int32))
    token = jnp.where(live, token, settings.pad_id)
    return token, SampleBatch(
        tokens=write(out.tokens, token),
        mask=write(out.mask, live),
        ended=out.ended | (live & is_eos),
        behaviour_logprobs=write(out.behaviour_logprobs, jnp.where(live, behaviour, 0.0)),
        logprobs=logprobs,
    )


def _uniforms(key, ids_B, samples: int, max_tokens: int) -> Array:
    """Uniform numbers in [0, 1), float32 [B, K, T], keyed by (key, prompt id, sample number, token number).

    A folded-in key is itself a hash of all that was folded in: its first word gives the number, without another hash. The
    three foldings are one loop, for hashes are slow to compile.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    shape = (ids_B.shape[0], samples, max_tokens)
    axes = (ids_B[:, None, None], jnp.arange(samples)[:, None], jnp.arange(max_tokens))
    numbers = jnp.stack([jnp.broadcast_to(axis, shape).astype(jnp.uint32) for axis in axes])
    fold = jax.vmap(jax.vmap(jax.vmap(jax.random.fold_in)))
    keys, _ = lax.scan(lambda keys, number: (fold(keys, number), None), jnp.broadcast_to(key, shape), numbers)
    return (jax.random.key_data(keys)[..., 0] >> 8).astype(jnp.float32) * 2.0**-24


# ---- one token ----


def filter_logits(logits, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Array:
    """The logits of the distribution drawn from: divided by the temperature, then -inf outside top-k, then outside top-p.

    Args:
        logits: float32 [..., V].
        temperature: above 0.
        top_k: tokens kept (and those tied with the last of them); 0 keeps all.
        top_p: keeps the fewest likeliest tokens whose probability reaches it (and ties); 1 keeps all.
    """
    if temperature != 1.0:
        logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        smallest = lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits >= smallest, logits, -jnp.inf)
    if top_p < 1.0:
        falling = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(falling, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # what the likelier tokens have already
        kept = (before < top_p).at[..., 0].set(True)
        smallest = jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= smallest, logits, -jnp.inf)
    return logits


def draw(logits, uniform) -> Array:
    """The token where the cumulative distribution passes `uniform`: int32 [...]; never one of probability 0.

    The vocabulary is summed in blocks of tokens, the block is found and then the token in it: one pass over the
    vocabulary, and the float32 sums stay short.

    Args:
        logits: float32 [..., V]; -inf is a probability of 0.
        uniform: float32 [...], in [0, 1).
    """
    V = logits.shape[-1]
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, -V % _BLOCK)])
    blocks = weights.reshape(*weights.shape[:-1], -1, _BLOCK)
    sums = jnp.sum(blocks, axis=-1)
    block, rest = _passing(sums, uniform * jnp.sum(sums, axis=-1))
    within = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
    token, _ = _passing(within, rest)
    return jnp.minimum(block * _BLOCK + token, V - 1).astype(jnp.int32)


def _passing(weights, target) -> tuple[Array, Array]:
    """The first positive weight at which the running sum exceeds `target`, and what of the target is left before it.

    Sums round: where none exceeds it, the last positive weight is the one meant.
    """
    running = jnp.cumsum(weights, axis=-1)
    positive = weights > 0
    passed = (running > target[..., None]) & positive
    last = weights.shape[-1] - 1 - jnp.argmax(jnp.flip(positive, axis=-1), axis=-1)
    index = jnp.where(jnp.any(passed, axis=-1), jnp.argmax(passed, axis=-1), last)
    before = jnp.take_along_axis(running - weights, index[..., None], axis=-1)[..., 0]
    return index, target - before


def _logprob(logits, token) -> Array:
    picked = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)


# ---- many prompts, on the host ----


def sample_prompts(
    sampler: Sampler,
    variables: PyTree,
    prompts: Sequence[np.ndarray],
    ids: Sequence[int],
    rows: int,
    key,
    *,
    max_prompt: int | None = None,
    put: Callable[[PromptBatch], PromptBatch] = lambda batch: batch,
    progress: str = "",
) -> SampleBatch:
    """Samples for any number of prompts, batch by batch, through one compiled sampler.

    Prompts go by length into a few buckets, so the sampler is compiled for few shapes; what does not fill a batch goes on
    to the next bucket, and the last batch is filled with rows for which nothing is sampled.

    Args:
        sampler: a jitted `make_sampler` function.
        variables: the model's.
        prompts: ids, one array a prompt, none empty.
        ids: the prompts' numbers, 0 or more, which key their randomness.
        rows: prompts a batch; the decoder holds rows * K responses.
        key: of all of them.
        max_prompt: tokens, the top bucket; None takes the longest prompt. Give it where several calls share a sampler.
        put: puts a batch where the sampler wants it (a mesh); rows must divide accordingly.
        progress: name of a progress bar on a terminal; "" shows none.

    Returns:
        numpy arrays [N, K, ...] in the order of `prompts`.
    """
    if not len(prompts):
        raise ValueError("there are no prompts to sample for")
    batches = list(_batches([len(prompt) for prompt in prompts], rows, max_prompt))
    if progress:
        import tqdm

        batches = tqdm.tqdm(batches, desc=progress, unit="batch", disable=None)
    whole: SampleBatch | None = None
    waiting: list[tuple[list[int], SampleBatch]] = []
    for number, (members, length) in enumerate(batches):
        distributed.at(progress or "sampling", number)
        batch = prompt_batch([prompts[i] for i in members], [ids[i] for i in members], length, rows)
        waiting.append((members, sampler(variables, put(batch), key)))
        if len(waiting) > 1:  # fetched while the next one is computed
            whole = _collect(whole, len(prompts), *waiting.pop(0))
    return _collect(whole, len(prompts), *waiting.pop())


def _batches(lengths: Sequence[int], rows: int, max_prompt: int | None) -> Iterator[tuple[list[int], int]]:
    """(members, padded length) of each batch: members of one bucket, and those left over from smaller ones."""
    maximum = max(lengths) if max_prompt is None else max_prompt
    buckets: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        buckets.setdefault(bucket_length(length, maximum), []).append(i)
    left: list[int] = []
    for bucket in sorted(buckets):
        left += buckets[bucket]
        while len(left) >= rows:
            yield left[:rows], bucket
            left = left[rows:]
    if left:
        yield left, max(buckets)


def _collect(whole: SampleBatch | None, number: int, members: list[int], batch: SampleBatch) -> SampleBatch:
    """Fetches a batch and writes its rows to their places."""
    fetched = [None if part is None else fetch(part)[: len(members)] for part in batch]
    if whole is None:
        whole = SampleBatch(*(None if part is None else np.zeros((number, *part.shape[1:]), part.dtype) for part in fetched))
    for all_rows, part in zip(whole, fetched, strict=True):
        if part is not None:
            all_rows[members] = part
    return whole
