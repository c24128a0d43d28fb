"""Sampling: 1 and 16 samples a prompt, equal and very unequal lengths, with and without replacing finished rows; and its curves."""

from __future__ import annotations

import numpy as np

from benchmarks.speed import ours, sizes
from benchmarks.speed.table import Target, row
from benchmarks.speed.timing import agree, alternate, once, seeded

TRANSFORMERS, TUNIX, REPLACED = Target(">= 8x", 8.0), Target(">= 4x", 4.0), Target(">= 1.5x", 1.5)
REPLACED_SAMPLES, REPLACED_ROWS = 64, 16
UNEQUAL = 8  # very unequal: geometric lengths whose mean is this part of the limit
CURVES = {"samples": (1, 2, 4, 8, 16, 32, 64), "prompts": (1, 2, 4, 8, 16, 32), "tokens": (16, 32, 64, 96, 128)}
CURVE_AT = {"samples": 16, "prompts": 8, "tokens": 64}


def cases(setting):
    """Yields a row a case and size; see `run.Setting`."""
    for size in setting.sizes:
        for dtype in setting.dtypes:
            yield from _beside_transformers(setting, size, dtype)
        yield from _beside_tunix(setting, size)
        yield from _replaced(setting, size)


def _work(samples: int, size, lengths: str = "") -> str:
    return f"{sizes.PROMPTS} prompts x {samples} samples, {sizes.PROMPT_TOKENS // 2} to {sizes.PROMPT_TOKENS} + " \
           f"{lengths or size.response} tokens"


def _counted(draw, mask):
    """`timing.seeded`, in thousands of tokens."""
    return seeded(draw, lambda drawn: float(np.sum(mask(drawn))) / 1000)


def _beside_transformers(setting, size, dtype):
    from benchmarks.speed import peers_torch

    folder, prompts = setting.folder(size), sizes.prompts(size)
    mine, theirs = ours.load(folder, dtype), peers_torch.load(folder, dtype)
    tolerance = 1e-3 if dtype == "float32" else 0.25
    none, many = sizes.eos_ids(size, None), sizes.eos_ids(size, size.response / UNEQUAL)
    for samples, ends, name in ((1, none, "sampling, 1 a prompt"), (16, none, "sampling, 16 a prompt"),
                                (16, many, "sampling, 16 a prompt, very unequal lengths")):
        own = ours.sampling(mine, prompts, samples, size.response, ends)
        peer = peers_torch.sampling(theirs, prompts, samples, size.response, ends)
        gap = _same_logprobs(mine, own(0), peer(0), prompts, theirs, tolerance)
        if ends is none:
            timed = alternate(seeded(own), seeded(peer), setting.budget(size))
            more = {"unit": "call", "work": _work(samples, size)}
        else:
            timed = alternate(_counted(own, lambda drawn: drawn.mask), _counted(peer, lambda drawn: drawn[1]), setting.budget(size))
            more = {"unit": "1,000 tokens", "work": _work(samples, size, f"about {size.response // UNEQUAL}, at most {size.response},")}
        target = TRANSFORMERS if name == "sampling, 16 a prompt" and dtype == "float32" else None
        yield row(name, setting.label(size), "transformers generate", timed, dtype=dtype, target=target,
                  checked=f"log-probs of both sides' samples, token by token, within {gap:.1e}", **more)


def _same_logprobs(mine, drawn, theirs_drawn, prompts, model, tolerance: float) -> float:
    """Our log-probs of our samples against the peer's forward pass, and ours of the peer's samples likewise."""
    from benchmarks.speed import peers_torch
    from irl_jax.types import Example

    scorer, gap = ours.scorer(mine, 4), 0.0
    tokens, mask = theirs_drawn
    for p in (0, len(prompts) - 1):
        count = int(drawn.mask[p, 0].sum())
        rows = np.concatenate([prompts[p], drawn.tokens[p, 0, :count]])[None]
        theirs = peers_torch.sequence_logprobs(model, rows)[0, len(prompts[p]) - 1 :]
        gap = max(gap, agree("log-probs of our samples", drawn.behaviour_logprobs[p, 0, :count], theirs, tolerance))
        response = tokens[p, 0, : int(mask[p, 0].sum())].astype(np.int32)
        rows = np.concatenate([prompts[p], response])[None]
        theirs = peers_torch.sequence_logprobs(model, rows)[0, len(prompts[p]) - 1 :].sum()
        own = scorer.logprobs(None, [Example(prompts[p], response, False)])[0]
        gap = max(gap, agree("log-prob a token of the peer's samples", own / len(response), theirs / len(response), tolerance))
    return gap


def _beside_tunix(setting, size):
    if setting.without("tunix"):
        return
    from benchmarks.speed import peers_tunix

    folder, prompts = setting.folder(size, "llama"), sizes.prompts(size)
    mine, theirs = ours.load(folder), peers_tunix.load(folder)
    none = sizes.eos_ids(size, None)
    for samples in (1, 16):
        own = ours.sampling(mine, prompts, samples, size.response, none)
        peer = peers_tunix.sampling(theirs, prompts, samples, size.response, none)
        gap = _same_as_tunix(mine, peers_tunix.sampling(theirs, prompts, 1, size.response, none, with_logprobs=True)(0), prompts)
        timed = alternate(seeded(own), seeded(peer), setting.budget(size))
        yield row(f"sampling, {samples} a prompt", setting.llama_label(size), "Tunix Sampler", timed, _work(samples, size),
                  target=TUNIX if samples == 16 else None, checked=f"log-probs of Tunix's samples, within {gap:.1e} a token",
                  note="a Llama of the size's layers, width and heads on both sides, for Tunix has no GPT-2; its sampler takes a prompt "
                       "once for each of its samples")


def _same_as_tunix(mine, out, prompts) -> float:
    from irl_jax.types import Example

    scorer, gap = ours.scorer(mine, 4), 0.0
    for prompt, tokens, logprobs in zip(prompts, out.tokens, out.logprobs, strict=True):
        if sizes.PAD in tokens:  # a random model draws it too, and Tunix then looks past it
            continue
        own = scorer.logprobs(None, [Example(prompt, np.asarray(tokens, np.int32), False)])[0]
        gap = max(gap, agree("log-probs of Tunix's samples", own / len(tokens), sum(logprobs) / len(tokens), 1e-3))
    assert gap, "every sample of Tunix's has the padding in it"
    return gap


def _replaced(setting, size):
    """Finished rows replaced by waiting samples, against our own sampler with a row for each sample."""
    folder, prompts = setting.folder(size), sizes.prompts(size)
    mine, ends = ours.load(folder), sizes.eos_ids(size, size.response / UNEQUAL)
    few = ours.sampling(mine, prompts, REPLACED_SAMPLES, size.response, ends, rows=REPLACED_ROWS)
    all_rows = ours.sampling(mine, prompts, REPLACED_SAMPLES, size.response, ends, rows=REPLACED_SAMPLES)
    one, other = few(0), all_rows(0)
    same = (one.tokens == other.tokens).all(-1)  # sums run in another order: a number that falls between two tokens may draw either
    agree("samples of both samplers, the share that differs", same.mean(), 1.0, 0.03)
    agree("log-probs of both samplers", one.behaviour_logprobs[same], other.behaviour_logprobs[same], 1e-3)
    lengths = one.mask.sum(-1)
    work = (f"{_work(REPLACED_SAMPLES, size)}, {REPLACED_ROWS} rows a prompt; lengths {lengths.mean():.0f} on average, "
            f"{lengths.max():.0f} at most")
    yield row("sampling, finished rows replaced", setting.label(size), "irl_jax, a row for each sample",
              alternate(seeded(few), seeded(all_rows), setting.budget(size)), work, target=REPLACED,
              checked=f"{same.sum()} of {same.size} samples token by token the same, with their log-probs",
              note="the same seeds on both sides, so the same samples")
    group = ours.sampling(mine, prompts, REPLACED_ROWS, size.response, ends)
    calls = range(REPLACED_SAMPLES // REPLACED_ROWS)
    yield row("sampling, finished rows replaced", setting.label(size), f"irl_jax, {len(calls)} calls of {REPLACED_ROWS} samples",
              alternate(seeded(few), seeded(lambda seed: [group(len(calls) * seed + call) for call in calls]), setting.budget(size)), work,
              note="as many rows on both sides; the samples are not the same")


def curves(setting) -> dict:
    """Seconds of our sampler over samples a prompt, prompts and tokens, the other two held at CURVE_AT; medians of 3."""
    size = setting.curve_size
    mine, none = ours.load(setting.folder(size)), sizes.eos_ids(size, None)
    points = {}
    for axis, values in CURVES.items():
        points[axis] = []
        for value in values[:: 3 if setting.quick else 1]:
            at = CURVE_AT | {axis: value}
            draw = seeded(ours.sampling(mine, sizes.prompts(size, at["prompts"]), at["samples"], at["tokens"], none))
            once(draw)
            points[axis].append({axis: value, "seconds": float(np.median([once(draw) for _ in range(3)]))})
    return {"size": setting.label(size), "held_at": CURVE_AT, "prompt_tokens": sizes.PROMPT_TOKENS, "points": points}
