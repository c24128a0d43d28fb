"""irl_jax's side of every case, through the functions that its stages use."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.speed import sizes
from irl_jax import config as configs
from irl_jax import hf, policy_steps, reward_steps, roles, sampler, sharding, steps
from irl_jax.data import batching
from irl_jax.stages import scoring
from irl_jax.types import Example, PolicyBatch

LEARNING_RATE = 1e-4


class Ours(NamedTuple):
    """A model on the mesh."""

    model: object
    trunk: object
    mesh: object


def load(folder, dtype: str = "float32", **how) -> Ours:
    """The folder's model, computed in `dtype`, parameters float32; `how` as in hf.load_folder."""
    mesh = sharding.make_mesh(configs.default().mesh)
    return Ours(*hf.load_folder(folder, mesh, dtype=dtype, **how), mesh)


# ---- sampling ----


def sampling(ours: Ours, prompts, samples: int, tokens: int, eos_ids, rows: int | None = None):
    """draw(seed) -> SampleBatch of numpy arrays [prompts, samples, tokens], with the sampler that the stages compile.

    rows: responses a prompt that are decoded at one time; None is all of them.
    """
    draw = sharding.compile_step(sampler.make_sampler(
        ours.model, samples=samples, max_tokens=tokens, eos_ids=tuple(eos_ids), pad_id=sizes.PAD, rows=rows), ours.mesh)
    variables = roles.variables(ours.trunk, None)
    longest = max(map(len, prompts))

    def run(seed: int):
        return sampler.sample_prompts(draw, variables, prompts, list(range(len(prompts))), len(prompts), jax.random.key(seed),
                                      max_prompt=longest, put=lambda batch: sharding.put_batch(batch, ours.mesh))

    return run


def scorer(ours: Ours, rows: int):
    """The scorer of the stages."""
    return scoring.Scorer(ours.model, ours.mesh, ours.trunk, longest=ours.model.max_positions, rows=rows)


def examples(rows: np.ndarray) -> list[Example]:
    """Full rows as prompt and response."""
    return [Example(row[: sizes.PROMPT_TOKENS], row[sizes.PROMPT_TOKENS :], False, i) for i, row in enumerate(rows)]


# ---- training ----


def optimizer():
    """AdamW as the stages make it, at a constant rate."""
    section = configs.default().sft.copy_and_resolve_references().unlock()
    section.learning_rate, section.schedule, section.warmup_fraction = LEARNING_RATE, "constant", 0.0
    return steps.make_optimizer(section, 1000)


def _stepper(ours: Ours, make_step, leaves, batch, control=()):
    """update() -> the metrics as floats, on one batch over and over."""
    step = sharding.compile_step(make_step, ours.mesh, donate=(0,))
    state = [sharding.place(steps.init_state(leaves, optimizer(), control), ours.mesh)]
    batch = sharding.put_batch(batch, ours.mesh)
    key = jax.random.key(0)

    def update() -> dict:
        state[0], metrics = step(state[0], ours.trunk, batch, key)
        jax.block_until_ready(state[0])
        return {name: float(value) for name, value in metrics.items()}

    return update


def sft(ours: Ours, rows: np.ndarray, rank: int = 0):
    """The SFT step of a whole trunk (rank 0) or of an adapter."""
    if rank:
        ours = ours._replace(model=dataclasses.replace(ours.model, adapter_scale=2.0))
    leaves = roles.init_leaves(jax.random.key(1), "sft", ours.model, rank, ours.trunk)
    batch = batching.token_rows(examples(rows), rows.shape[1])
    return _stepper(ours, steps.make_sft_step(ours.model, optimizer()), leaves, batch)


def reward(ours: Ours, rows: np.ndarray, head: np.ndarray):
    """The Bradley-Terry step of a whole trunk and a linear head [D]; the first half of the rows are chosen over the second."""
    leaves = roles.init_leaves(jax.random.key(1), "reward", ours.model, 0, ours.trunk, reward=roles.RewardSpec(body="trunk"))
    leaves["head"]["kernel"] = jnp.asarray(head[:, None])
    half = len(rows) // 2
    batch = batching.reward_rows(examples(rows), [1.0] * half + [0.0] * half, rows.shape[1])
    return _stepper(ours, reward_steps.make_reward_step(ours.model, optimizer(), loss="bradley_terry"), leaves, batch)


def policy(ours: Ours, rows: np.ndarray, advantages: np.ndarray, reference: np.ndarray):
    """The policy-gradient step (score function) of a whole trunk, on finished samples.

    advantages: float32 [rows]. reference: float32 [rows, tokens], log-probs of the reference and, here, of the behaviour.
    """
    leaves = roles.init_leaves(jax.random.key(1), "policy", ours.model, 0, ours.trunk)
    tokens = batching.token_rows(examples(rows), rows.shape[1])
    reference = np.asarray(reference, np.float32) * tokens.mask
    batch = PolicyBatch(tokens, advantages[:, None].astype(np.float32) * tokens.mask, reference, reference, np.zeros_like(reference),
                        np.zeros(len(rows), np.float32), np.ones(len(rows), np.float32))
    make = policy_steps.make_policy_step(ours.model, optimizer(), policy_steps.PolicySettings())
    return _stepper(ours, make, leaves, batch, policy_steps.init_control(0.1))


def token_scores(ours: Ours, rows: np.ndarray) -> np.ndarray:
    """Log-probs of the response tokens, float32 [rows, tokens]."""
    batch = sharding.put_batch(batching.token_rows(examples(rows), rows.shape[1]), ours.mesh)
    score = sharding.compile_step(lambda trunk, batch: steps.score_logprobs(ours.model, trunk, None, batch), ours.mesh)
    return np.asarray(score(ours.trunk, batch))


def scores(ours: Ours, rows: np.ndarray):
    """score() -> log-probs of the responses, float64 [rows], with the scorer of the stages."""
    compiled, batch = scorer(ours, len(rows)), examples(rows)
    return lambda: compiled.logprobs(None, batch)
