"""The generation loop: K responses per prompt from one prefill, and their exact log-probs.

Training on a policy's own samples draws at temperature 1, unfiltered. Reward data and evaluation do too, unless the config's
sample.temperature and sample.top_p say otherwise. `generate` follows its flags. The log-probs of the distribution drawn from (behaviour)
and those of the model then differ.
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
from irl_jax.data.batching import PADDING_ID, Group, plan_groups, prompt_batch
from irl_jax.drawing import draw, filter_logits, logprob
from irl_jax.errors import UserError
from irl_jax.models.adapters import merge
from irl_jax.models.layers import by_rows
from irl_jax.models.transformer import ModelConfig, decode, init_response_cache, prefill, unstack
from irl_jax.progress import bar
from irl_jax.sharding import fetch
from irl_jax.types import Array, PromptBatch, PyTree, SampleBatch

Sampler = Callable[..., SampleBatch]


class _Settings(NamedTuple):
    """make_sampler's arguments."""

    samples: int
    rows: int
    max_tokens: int
    eos_ids: tuple[int, ...]
    pad_id: int
    temperature: float | None
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
    rows: int | None = None,
    temperature: float | None = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    with_logprobs: bool = False,
) -> Sampler:
    """Makes sample(variables, prompts, key, wanted, temperature) -> SampleBatch: pure, to be jitted once and called with any prompt shapes.

    Token t of sample k of prompt i is drawn with the first word of fold_in(fold_in(fold_in(key, i), k), t) through the inverse of the
    cumulative distribution. So it does not depend on its row, its neighbours, K, R or the mesh.

    A prompt's K samples go through R rows. After every step, rows whose response has ended take the next samples waiting for the same
    prompt. Decoding stops when every response has ended, after as many steps as the prompt with the most work needs.

    Args:
        config: the model's.
        samples: K, responses per prompt.
        max_tokens: T, tokens per response, EOS included.
        eos_ids: tokens that end a response; each is part of it.
        pad_id: fills the tokens after the end.
        rows: R, responses per prompt decoded at one time; None decodes all K.
        temperature: divides the logits; 0 takes the likeliest token. None: `sample` takes it, so one compiled sampler serves all
            temperatures.
        top_k: draw among the k likeliest tokens (ties with the last included); 0 draws among all.
        top_p: draw among the fewest likeliest tokens whose probability reaches this (ties included); 1 draws among all. Applied after the
            temperature and top_k.
        with_logprobs: also return the model's own log-probs (temperature 1, unfiltered).

    Returns:
        sample. wanted: int32 scalar, how many of the K samples to draw (default: all); the others get no tokens. temperature: float32
        scalar, if make_sampler was given None. Prompts with id PADDING_ID get no tokens.

    Raises:
        UserError: a setting is out of range.
    """
    rows = samples if rows is None else min(rows, samples)
    if samples < 1 or rows < 1 or max_tokens < 1 or not 0 <= (temperature or 0) < float("inf") or top_k < 0 or not 0 < top_p <= 1:
        raise UserError(
            f"sampling with samples = {samples}, rows = {rows}, max_tokens = {max_tokens}, temperature = {temperature}, top_k = {top_k}, "
            f"top_p = {top_p}: the first three must be 1 or more, the next two 0 or more, and top_p in (0, 1]"
        )
    settings = _Settings(samples, rows, max_tokens, tuple(eos_ids), pad_id, temperature, top_k, top_p, with_logprobs)
    return functools.partial(_sample, config, settings)


class _Drawn(NamedTuple):
    """One token of each of some distributions: int32, and float32 log-probs of the distribution drawn from and of the model.

    The latter is None if not asked for, or if both are the same.
    """

    tokens: Array
    behaviour: Array
    model: Array | None


class _Queue(NamedTuple):
    """A prompt's samples in the order in which they get rows. Samples that ended with their first token are left out.

    order: int32 [B, K], sample numbers. length: int32 [B], samples in it. begun: int32 [B], how many have had a row.
    row, start: int32 [B, K], by place in the queue: the row, and the step that drew the sample's second token.
    """

    order: Array
    length: Array
    begun: Array
    row: Array
    start: Array


class _Rows(NamedTuple):
    """What is decoded. sample, drawn, token: int32 [B, R], a row's sample, its number of tokens so far, and the last of them.

    live: bool [B, R], whether the sample has not ended.
    """

    sample: Array
    drawn: Array
    token: Array
    live: Array


def _sample(config: ModelConfig, settings: _Settings, variables: PyTree, prompts: PromptBatch, key, wanted=None,
            temperature=None) -> SampleBatch:
    """Draws every sample's first token at once from the prompts' logits, then the others row by row into a log, and puts it in order."""
    B, K, R, T = prompts.ids.shape[0], settings.samples, settings.rows, settings.max_tokens
    variables = unstack(config, _merged(config, variables))
    draw_one = functools.partial(_draw, settings, temperature)
    uniform_BxKxT = _uniforms(key, prompts.ids, K, T)
    asked_BxK = (prompts.ids != PADDING_ID)[:, None] & (jnp.arange(K) < (K if wanted is None else wanted))
    logits_BxV, prompt_cache = prefill(config, variables, prompts.tokens, prompts.lengths)
    first = jax.vmap(jax.vmap(draw_one, (None, 0)))(logits_BxV, uniform_BxKxT[:, :, 0])
    if T == 1:
        return _batch(settings, asked_BxK, jax.tree.map(lambda leaf: leaf[..., None], first))
    queue = _queue(asked_BxK & ~_is_eos(settings, first.tokens))
    rows = _Rows(*(by_rows(jnp.zeros((B, R), kind)) for kind in (jnp.int32, jnp.int32, jnp.int32, bool)))
    queue, rows = _refill(queue, rows, first.tokens, 0)
    cache = init_response_cache(config, B, R, T - 1)  # the last token is never fed back
    steps = -(-K // R) * (T - 1)  # upper bound: place p of the queue begins after at most p // R * (T - 1) steps
    log = jax.tree.map(lambda leaf: by_rows(jnp.zeros((B, R, steps), leaf.dtype)), first)

    def unfinished(carry):
        return jnp.any(carry[2].live)

    def body(carry):
        step, queue, rows, cache, log = carry
        logits, cache = decode(config, variables, rows.token, rows.drawn - 1, step % (T - 1), prompts.lengths, prompt_cache, cache)
        new = draw_one(logits, _at(uniform_BxKxT, rows.sample, rows.drawn))
        log = jax.tree.map(lambda whole, part: lax.dynamic_update_index_in_dim(whole, part, step, axis=2), log, new)
        live = rows.live & (rows.drawn + 1 < T) & ~_is_eos(settings, new.tokens)
        rows = _Rows(rows.sample, jnp.minimum(rows.drawn + 1, T - 1), new.tokens, live)
        if R < K:
            queue, rows = _refill(queue, rows, first.tokens, step + 1)
        return step + 1, queue, rows, cache, log

    _, queue, _, _, log = lax.while_loop(unfinished, body, (jnp.int32(0), queue, rows, cache, log))
    return _batch(settings, asked_BxK, _in_order(settings, queue, first, log))


def _merged(config: ModelConfig, variables: PyTree) -> PyTree:
    """Merges the adapter into the kernels if rounding the sum to the dtype loses none of it. Saves two products per kernel and step."""
    return {"params": merge(config, variables)} if config.dtype == "float32" else variables


def _draw(settings: _Settings, temperature, logits, uniform) -> _Drawn:
    """The next token from logits [..., V] and uniform numbers [...]."""
    if settings.temperature is None:
        greedy, own = temperature == 0, None
        token, behaviour = draw(filter_logits(logits / jnp.where(greedy, 1.0, temperature), 1.0, settings.top_k, settings.top_p), uniform)
        token = jnp.where(greedy, jnp.argmax(logits, axis=-1).astype(jnp.int32), token)
        behaviour = jnp.where(greedy, 0.0, behaviour)  # it had no choice: log 1
        if settings.with_logprobs:
            same = (temperature == 1) & (not settings.top_k) & (settings.top_p >= 1)
            own = lax.cond(same, lambda: behaviour, lambda: logprob(logits, token))
        return _Drawn(token, behaviour, own)
    if settings.temperature == 0:
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        behaviour = jnp.zeros(token.shape, jnp.float32)  # it had no choice: log 1
    else:
        drawn_from = filter_logits(logits, settings.temperature, settings.top_k, settings.top_p)
        token, behaviour = draw(drawn_from, uniform)
    filtered = settings.temperature != 1 or settings.top_k or settings.top_p < 1
    return _Drawn(token, behaviour, logprob(logits, token) if settings.with_logprobs and filtered else None)


def _is_eos(settings: _Settings, tokens) -> Array:
    return jnp.isin(tokens, jnp.asarray(settings.eos_ids, jnp.int32))


def _at(whole_BxKxT, k_BxR, t_BxR) -> Array:
    """whole[b, k, t] for each row: [B, R]."""
    flat_BxKT = whole_BxKxT.reshape(whole_BxKxT.shape[0], -1)
    return jnp.take_along_axis(flat_BxKT, k_BxR * whole_BxKxT.shape[2] + t_BxR, axis=1)


def _queue(waiting_BxK) -> _Queue:
    """A queue of all waiting samples, none of them begun."""
    order = jnp.argsort(~waiting_BxK, axis=1, stable=True).astype(jnp.int32)
    nothing = jnp.zeros(waiting_BxK.shape, jnp.int32)
    return _Queue(order, waiting_BxK.sum(axis=1, dtype=jnp.int32), nothing[:, 0], nothing, nothing)


def _refill(queue: _Queue, rows: _Rows, first_BxK, step) -> tuple[_Queue, _Rows]:
    """Gives free rows to the next samples in the queue, each with its first token, which is fed at `step`."""
    K = first_BxK.shape[1]
    free_BxR = ~rows.live
    place_BxR = queue.begun[:, None] + jnp.cumsum(free_BxR, axis=1, dtype=jnp.int32) - 1
    taken_BxR = free_BxR & (place_BxR < queue.length[:, None])
    sample_BxR = jnp.take_along_axis(queue.order, jnp.clip(place_BxR, 0, K - 1), axis=1)
    begins_BxRxK = taken_BxR[:, :, None] & (place_BxR[:, :, None] == jnp.arange(K))
    begins_BxK, row_BxK = begins_BxRxK.any(axis=1), jnp.argmax(begins_BxRxK, axis=1).astype(jnp.int32)
    queue = queue._replace(
        begun=queue.begun + taken_BxR.sum(axis=1, dtype=jnp.int32),
        row=jnp.where(begins_BxK, row_BxK, queue.row),
        start=jnp.where(begins_BxK, step, queue.start),
    )
    fresh = _Rows(sample_BxR, jnp.ones_like(rows.drawn), jnp.take_along_axis(first_BxK, sample_BxR, axis=1), taken_BxR)
    rows = jax.tree.map(lambda new, old: jnp.where(taken_BxR, new, old), fresh, rows)
    return queue, rows


def _in_order(settings: _Settings, queue: _Queue, first: _Drawn, log: _Drawn) -> _Drawn:
    """[B, K, T]: each first token, then the sample's part of the log [B, R, steps]. That part may end in tokens that are not its own."""
    place_BxK = jnp.argsort(queue.order, axis=1)  # of each sample in the queue
    row_BxK, start_BxK = (jnp.take_along_axis(part, place_BxK, axis=1) for part in (queue.row, queue.start))
    B, R, steps = log.tokens.shape
    step_BxKxT = jnp.minimum(start_BxK[:, :, None] + jnp.arange(settings.max_tokens - 1), steps - 1)
    index_BxKT = (row_BxK[:, :, None] * steps + step_BxKxT).reshape(B, -1)

    def one(first_BxK, log_BxRxL):
        rest = jnp.take_along_axis(log_BxRxL.reshape(B, -1), index_BxKT, axis=1).reshape(step_BxKxT.shape)
        return jnp.concatenate([first_BxK[:, :, None], rest], axis=2)

    return jax.tree.map(one, first, log)


def _batch(settings: _Settings, asked_BxK, drawn: _Drawn) -> SampleBatch:
    """Samples [B, K, T], blank after their first EOS and where none were asked for."""
    eos_BxKxT = _is_eos(settings, drawn.tokens)
    over_BxKxT = jnp.cumsum(eos_BxKxT, axis=2) - eos_BxKxT > 0
    inside_BxKxT = asked_BxK[:, :, None] & ~over_BxKxT
    behaviour = jnp.where(inside_BxKxT, drawn.behaviour, 0.0)
    logprobs = None
    if settings.with_logprobs:
        logprobs = behaviour if drawn.model is None else jnp.where(inside_BxKxT, drawn.model, 0.0)
    return SampleBatch(
        tokens=jnp.where(inside_BxKxT, drawn.tokens, settings.pad_id),
        mask=inside_BxKxT.astype(jnp.float32),
        ended=asked_BxK & eos_BxKxT.any(axis=2),
        behaviour_logprobs=behaviour,
        logprobs=logprobs,
    )


def _uniforms(key, ids_B, samples: int, max_tokens: int) -> Array:
    """Uniform numbers in [0, 1), float32 [B, K, T], keyed by (key, prompt id, sample number, token number).

    A folded-in key is itself a hash of all that was folded in, so its first word gives the number without another hash. The three folds are
    one loop, since hashes are slow to compile.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    shape = (ids_B.shape[0], samples, max_tokens)
    axes = (ids_B[:, None, None], jnp.arange(samples)[:, None], jnp.arange(max_tokens))
    numbers = jnp.stack([jnp.broadcast_to(axis, shape).astype(jnp.uint32) for axis in axes])
    fold = jax.vmap(jax.vmap(jax.vmap(jax.random.fold_in)))
    keys, _ = lax.scan(lambda keys, number: (fold(keys, number), None), jnp.broadcast_to(key, shape), numbers)
    return (jax.random.key_data(keys)[..., 0] >> 8).astype(jnp.float32) * 2.0**-24


# ---- many prompts, on the host ----


def sample_prompts(
    sampler: Sampler, variables: PyTree, prompts: Sequence[np.ndarray], ids: Sequence[int], size: int, key, *,
    max_prompt: int | None = None, **how,
) -> SampleBatch:
    """Samples for any number of prompts, batch by batch, through one compiled sampler.

    Args:
        sampler, variables, prompts, ids, size, key, how: as in `sample_batches`.
        max_prompt: tokens that the longest prompts are padded to; None takes the longest of these.

    Returns:
        numpy arrays [N, K, ...] in the order of `prompts`.
    """
    if not len(prompts):
        raise ValueError("there are no prompts to sample for")
    lengths = [len(prompt) for prompt in prompts]
    batches = plan_groups(lengths, size, max(lengths) if max_prompt is None else max_prompt)
    drawn = list(sample_batches(sampler, variables, prompts, ids, batches, size, key, **how))
    back = np.argsort(np.concatenate([batch.members for batch in batches]))
    return SampleBatch(*(None if parts[0] is None else np.concatenate(parts)[back] for parts in zip(*drawn, strict=True)))


def sample_batches(
    sampler: Sampler,
    variables: PyTree,
    prompts: Sequence[np.ndarray],
    ids: Sequence[int],
    batches: Sequence[Group],
    size: int,
    key,
    *,
    wanted: int | None = None,
    temperature: float | None = None,
    put: Callable[[PromptBatch], PromptBatch] = lambda batch: batch,
    progress: str = "",
) -> Iterator[SampleBatch]:
    """Samples the prompts of each batch. Results are fetched while the next batch is computed.

    Args:
        sampler: a jitted `make_sampler` function. variables: the model's.
        prompts: ids, one array per prompt, none empty. ids: the prompts' numbers, 0 or more, which key their randomness.
        batches: from `plan_groups`, or some of them. size: prompts per batch; the decoder holds size * R responses. Smaller batches are
            filled with rows for which nothing is sampled.
        key: for all of them.
        wanted: samples per prompt, at most the sampler's; None takes all. temperature: if the sampler takes one; give wanted too.
        put: places a batch where the sampler wants it (a mesh); size must divide accordingly.
        progress: name of a progress bar on a terminal; "" shows none.

    Yields:
        numpy arrays [members, wanted, ...].
    """
    if progress:
        batches = bar(batches, desc=progress, unit="batch")
    some = tuple(kind(value) for kind, value in ((np.int32, wanted), (np.float32, temperature)) if value is not None)
    waiting: list[tuple[int, SampleBatch]] = []
    for number, (members, length) in enumerate(batches):
        distributed.at(progress or "sampling", number)
        batch = prompt_batch([prompts[i] for i in members], [ids[i] for i in members], length, size)
        waiting.append((len(members), sampler(variables, put(batch), key, *some)))
        if len(waiting) > 1:
            yield _fetched(*waiting.pop(0), wanted)
    for last in waiting:
        yield _fetched(*last, wanted)


def _fetched(members: int, batch: SampleBatch, wanted: int | None) -> SampleBatch:
    return SampleBatch(*(None if part is None else fetch(part)[:members, :wanted] for part in batch))
