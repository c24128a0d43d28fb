"""What the policy and adversarial stages share: prompts, samples of the policy, its update, saved rollouts."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from irl_jax import artifacts, policy_steps, rollouts, sampler, sharding, steps
from irl_jax.config import CLOSED_FORMS, ROBUST
from irl_jax.data import batching
from irl_jax.evaluation import hacking
from irl_jax.stages import sampling, training
from irl_jax.types import Example, PromptBatch

BASE_ROUNDS = 5  # with policy.stop, rounds on whose prompts the starting policy's signs of reward hacking are measured


class Round(NamedTuple):
    """One feed of the loop: the round's number (from 0), the prompts' numbers, and the prompts as a batch on the mesh."""

    number: int
    chosen: np.ndarray
    prompts: PromptBatch


class PolicyGradient:
    """The compiled parts of one policy's training, with the settings of config.policy. Methods that compile alike share them.

    recipe, granularity, combine: the reward's (see `rollouts.make_judge`). prompts: ids, one array per training prompt.
    rounds: steps of the loop, for the learning rate schedule.
    """

    def __init__(self, context, role: str, *, recipe: str, granularity: str, combine: str, prompts, rounds: int):
        config = context.config.policy
        self.context, self.config, self.role, self.prompts = context, config, role, prompts
        self.settings = policy_steps.PolicySettings.of(config)
        self.optimizer = steps.make_optimizer(config, rounds * config.epochs * config.minibatches)
        self.reference = context.leaves(config.reference)
        self._key = context.key(f"{role}/rollouts")
        self._rows = training.batch_rows(config.batch_size, config.accumulate, context.mesh, "policy")
        self._indices = batching.feed(len(prompts), config.batch_size, context.config.seed)
        self._length = batching.bucket_length(max(map(len, prompts)), context.config.data.max_prompt_tokens)
        self.longest = self._length + context.config.data.max_response_tokens  # tokens per row
        model, dense = context.model, rollouts.is_dense(recipe, granularity)
        kind = recipe if recipe in (*CLOSED_FORMS, ROBUST) else "learnt"
        rows = sampling.rows_of(context.config.sample, self._rows, config.samples)
        self._draw = training.compiled(context, ("draw", config.samples, rows), lambda: rollouts.make_draw(
            model, sampler.make_sampler(model, samples=config.samples, rows=rows, max_tokens=context.config.data.max_response_tokens,
                                        eos_ids=context.eos_ids, pad_id=context.pad_id), context.pad_id), donate=())
        self._judge = training.compiled(context, ("judge", kind, granularity, combine), lambda: rollouts.make_judge(
            model, kind, granularity, combine), donate=())
        self._advantages = training.compiled(context, ("advantages", self.settings, config.samples, kind, dense), lambda: (
            rollouts.make_advantages(model, self.settings, config.samples, eos_counts=kind != "learnt")), donate=())
        self._step = training.compiled(
            context, ("policy", self.settings, config.accumulate, training.optimizer_name(config), rounds),
            lambda: policy_steps.make_policy_step(model, self.optimizer, self.settings, config.accumulate))

    def start(self):
        """The state before the first update: config.policy.start, with a fresh value head if there is one."""
        leaves = self.context.init_leaves("policy", f"{self.role}/leaves", self.context.leaves(self.config.start),
                                          value=self.settings.advantage == "gae")
        control = policy_steps.init_control(self.config.beta, self._start_signs(leaves) if self.config.stop == "gate" else {})
        return self.context.place(steps.init_state(leaves, self.optimizer, control))

    def _start_signs(self, leaves) -> dict:
        """Signs of reward hacking in the starting policy's samples for the first rounds' prompts; `stop` compares with them.

        A resumed run computes the same ones again.
        """
        signs = training.compiled(self.context, ("signs",), lambda: rollouts.signs, donate=())
        found = sharding.fetch([signs(self._drawn(leaves, self.feed(number))) for number in range(BASE_ROUNDS)])
        base = {name: np.mean([one[name] for one in found], dtype=np.float32) for name in hacking.SIGNS}
        self._base = {name: float(value) for name, value in base.items()}
        return {f"{rollouts.SMOOTHED}{name}": jnp.asarray(value) for name, value in base.items()}

    def feed(self, number: int) -> Round:
        """The prompts of a round; each round has fresh ones."""
        chosen = self._indices(number)
        batch = batching.prompt_batch([self.prompts[i] for i in chosen], list(range(len(chosen))), self._length, self._rows)
        return Round(number, chosen, self.context.put(batch))

    def draw(self, state, fed: Round) -> rollouts.Drawn:
        """Samples of the current policy for the round's prompts."""
        return self._drawn(state.leaves, fed)

    def _drawn(self, leaves, fed: Round) -> rollouts.Drawn:
        key = jax.random.fold_in(self._key, fed.number)
        return self._draw(_without_value(leaves), self.reference, self.context.trunk, fed.prompts, key)

    def update(self, state, drawn, reward_leaves, fed: Round, rng):
        """Judges the samples and updates the policy on them; some rounds' samples are saved. Returns (state, metrics)."""
        trunk = self.context.trunk
        logits = self._judge(trunk, reward_leaves, drawn)
        batch, control, metrics = self._advantages(state.leaves, trunk, drawn, logits, state.control)
        every = self.config.keep_rollouts_every
        if every and fed.number % every == 0:
            path = self.context.directory(f"{self.role}/rollouts") / f"{fed.number}.npz"
            _keep(path, drawn, batch, len(fed.chosen) * self.config.samples)
        state, more = self._step(state, trunk, batch, rng)
        return state._replace(control=control), dict(**metrics, **more)  # a name in both is an error

    def examples(self, drawn, fed: Round) -> list:
        """The samples on the host; `source` is the prompt's number."""
        sources = np.repeat(fed.chosen, self.config.samples)
        tokens, mask, ended = (part[: len(sources)] for part in sharding.fetch((drawn.rows.tokens, drawn.rows.mask, drawn.ended)))
        out = []
        for source, row, count, over in zip(sources, tokens, mask.sum(-1).astype(int), ended, strict=True):
            prompt = self.prompts[source]
            out.append(Example(prompt, row[len(prompt) : len(prompt) + count], bool(over), int(source)))
        return out

    def stop(self, row: dict) -> str | None:
        """The reason to stop after a step with these metrics, or None."""
        if self.config.max_kl and row["kl"] > self.config.max_kl:
            return f"KL to {self.config.reference} {row['kl']:.2f} nats passed policy.max_kl = {self.config.max_kl}"
        if self.config.stop == "gate":
            why = hacking.reason({name: row[f"{rollouts.SMOOTHED}{name}"] for name in self._base}, self._base)
            return f"the reward is being hacked: {why}" if why else None
        return None

    def save(self, state) -> None:
        """Saves the finished policy's leaves, without the value head."""
        self.context.save(self.role, _without_value(state.leaves))


def _without_value(leaves):
    return {name: leaf for name, leaf in leaves.items() if name != "value"}


def _keep(path, drawn, batch, rows: int) -> None:
    """Saves rows for the report's reward-against-golden curve, whole or not at all. A resumed run writes the same again."""
    drawn, reward = jax.tree.map(lambda x: x[:rows], sharding.fetch((drawn, batch.reward)))
    lengths = drawn.last + 1
    artifacts.save_arrays(path, tokens=drawn.rows.tokens, prompt_lengths=lengths - drawn.rows.mask.sum(-1).astype(lengths.dtype),
                        lengths=lengths, ended=drawn.ended, reward=reward,
                        kl=(drawn.behaviour_logprobs - drawn.reference_logprobs).sum(-1))
