"""What a decode step of our sampler is made of: python -m benchmarks.speed.parts [SIZE ...], by timing it with parts left out.

Prints milliseconds a step, for 8 prompts of 32 tokens x 16 rows: the whole loop of the sampler by the length of its cache of responses,
the matrix products of the layers and of the vocabulary alone, in the order of a decode step, and one draw for every row.
"""

from __future__ import annotations

import sys
import time

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.speed import sizes, timing
from irl_jax.drawing import draw, filter_logits
from irl_jax.models import families, transformer

SAMPLES, STEPS, REPEATS = 16, 32, 5


def parts(size) -> dict[str, float]:
    """{part: milliseconds a step}."""
    config = families.from_hf_config(sizes.hf_config(size))
    trunk = transformer.init_trunk(jax.random.key(0), config)
    rows = sizes.PROMPTS * SAMPLES
    logits = jax.random.normal(jax.random.key(1), (sizes.PROMPTS, SAMPLES, config.vocab_size))
    variables = transformer.unstack(config, {"params": trunk})
    found = {f"decode, {length} response tokens in the cache": _milliseconds(_decode(config, length), variables)
             for length in (8, size.response)}
    found["matrix products alone"] = _milliseconds(_products(config, rows), variables["params"])
    for name, top_p in (("draws alone", 1.0), ("draws alone, top-p 0.95", 0.95)):
        found[name] = _milliseconds(_draws(top_p), logits)
    return found


def _decode(config, length: int):
    """A loop of decode steps whose tokens depend on the logits before, with a cache of so many response tokens."""

    def run(variables):
        tokens = jnp.ones((sizes.PROMPTS, sizes.PROMPT_TOKENS), jnp.int32)
        lengths = jnp.full(sizes.PROMPTS, sizes.PROMPT_TOKENS, jnp.int32)
        _, prompt_cache = transformer.prefill(config, variables, tokens, lengths)
        cache = transformer.init_response_cache(config, sizes.PROMPTS, SAMPLES, length)

        def body(step, carry):
            cache, token = carry
            slot = step % length
            logits, cache = transformer.decode(
                config, variables, token, jnp.full_like(token, slot), slot, lengths, prompt_cache, cache)
            return cache, jnp.argmax(logits[..., :2], -1).astype(jnp.int32)

        first = jnp.ones((sizes.PROMPTS, SAMPLES), jnp.int32)
        return lax.fori_loop(0, STEPS, body, (cache, first))[1]

    return run


def _products(config, rows: int):
    def run(params):
        def body(_, x):
            for layer in params["blocks"]:
                flat = {name: part["kernel"].reshape(config.width, -1) for name, part in layer["attention"].items() if name != "o"}
                q, k, v = (x @ flat[name] for name in ("q", "k", "v"))
                x = x + (q + k + v) @ layer["attention"]["o"]["kernel"].reshape(-1, config.width)
                x = x + (x @ layer["mlp"]["up"]["kernel"]) @ layer["mlp"]["down"]["kernel"]
            return 1e-3 * x + 1e-9 * (x @ params["embed"]["tokens"].T).sum()

        return lax.fori_loop(0, STEPS, body, jnp.ones((rows, config.width)))

    return run


def _draws(top_p: float):
    def run(logits):
        def body(step, total):
            tokens, logprobs = draw(filter_logits(logits + 1e-9 * total, top_p=top_p), jnp.full(logits.shape[:-1], 0.5))
            return total + logprobs.sum() + tokens.sum()

        return lax.fori_loop(0, STEPS, body, 0.0)

    return run


def _milliseconds(function, argument) -> float:
    """The least of some runs, a step."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(argument))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(argument))
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds) / STEPS


def main(argv) -> int:
    timing.pin(0)
    for name in argv or list(sizes.SIZES):
        print(sizes.SIZES[name].label)
        for part, milliseconds in parts(sizes.SIZES[name]).items():
            print(f"  {milliseconds:8.2f} ms a step  {part}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
