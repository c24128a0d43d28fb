"""The adversarial loop: the reward is retrained on the current policy's samples while the policy optimises it.

Each round samples from the policy, updates the discriminator on positives (demonstrations, or samples of sft) against fresh
and replayed samples, then updates the policy on the fresh ones (Sun & van der Schaar, arXiv 2405.15624, reverse KL;
Ho & Ermon 2016). Only here is policy.divergence what is minimised: e^h stays near the density ratio of positives to the
current policy. A round is one step of the loop. A killed run resumes where it was, buffer included.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import jax
import numpy as np

from irl_jax import loop, reward_steps, roles, sharding, steps
from irl_jax.data import batching, replay
from irl_jax.errors import UserError
from irl_jax.stages import gradient, reward_model, sampling, training
from irl_jax.types import Array, TrainState

SMOOTHING = 0.1  # weight of the newest round in the smoothed accuracy


class State(NamedTuple):
    """policy, reward: their training states. buffer: samples of earlier rounds. accuracy: smoothed balanced accuracy, float32."""

    policy: TrainState
    reward: TrainState
    buffer: replay.Replay
    accuracy: Array


def run(context) -> dict:
    """Trains the run's adversarial policies; writes W/adversarial/<name>, with the last reward of each."""
    return training.each_method(context, "adversarial", train_adversarial)


def train_adversarial(context, method) -> dict:
    """Trains one policy against its own discriminator for `config.adversarial.rounds` rounds."""
    config = context.config.adversarial
    positives = positives_by_prompt(context, method.recipe)
    prompts = [examples[0].prompt for examples in positives]
    trainer = gradient.PolicyGradient(
        context, method.role, recipe="adversarial", granularity=context.config.reward.granularity,
        combine=context.config.reward.combine, prompts=prompts, rounds=max(1, config.rounds - config.warmup_rounds))
    critic = _Critic(context, method.role, positives)

    def step(state, trunk, fed, rng):
        del trunk  # the trainer has it
        drawn = trainer.draw(state.policy, fed)
        examples = trainer.examples(drawn, fed)
        reward, metrics = critic.round(state.reward, examples, state.buffer, fed.number, jax.random.fold_in(rng, 0))
        share = max(SMOOTHING, 1 / (fed.number + 1))
        accuracy = np.float32(state.accuracy + share * (metrics["balanced_accuracy"] - state.accuracy))
        metrics["smoothed_accuracy"] = accuracy
        policy = state.policy
        if fed.number >= config.warmup_rounds:
            policy, more = trainer.update(policy, drawn, critic.leaves(reward), fed, jax.random.fold_in(rng, 1))
            metrics = dict(**metrics, **more)  # a name in both is an error
        return State(policy, reward, replay.add(state.buffer, examples), np.asarray(accuracy)), metrics

    def stop(row):
        if "loss" not in row:
            return None  # still warming up
        if not config.min_accuracy <= row["smoothed_accuracy"] <= config.max_accuracy:
            can = "no longer" if row["smoothed_accuracy"] < config.min_accuracy else "too easily"
            return f"the reward can {can} tell the sources apart (balanced accuracy {row['smoothed_accuracy']:.3f})"
        return trainer.stop(row)

    start = State(trainer.start(), critic.start(), replay.empty(max(1, config.replay_capacity), trainer.longest), np.zeros((), np.float32))
    state, info = loop.train(step, start, context.trunk, trainer.feed, steps=config.rounds, key=context.key(f"{method.role}/steps"),
                             directory=context.directory(method.role), checkpoint=context.config.checkpoint, name=method.role, stop=stop,
                             profile=context.config.profile, log=context.config.log)
    context.save(f"{method.role}/reward", critic.leaves(state.reward))
    trainer.save(state.policy)
    return info


def positives_by_prompt(context, recipe: str) -> list[list]:
    """Positives per training prompt that has any: demonstrations, or samples of sft."""
    examples = context.demonstrations if recipe == "demo" else sampling.load(context, "sft", "reward")["examples"]
    table: dict[bytes, list] = {}
    for example in examples:
        table.setdefault(example.prompt.tobytes(), []).append(example)
    if not table:
        raise UserError(f"config.adversarial: there is no positive response for the recipe '{recipe}'; give demonstrations")
    return list(table.values())


class _Critic:
    """The discriminator's side of a round."""

    def __init__(self, context, role: str, positives: list[list]):
        config = context.config
        self.context, self.role, self.positives = context, role, positives
        self.config, self.settings = config.adversarial, reward_steps.RewardSettings.of(config.reward, context.eos_ids)
        self.spec = roles.RewardSpec.of(config.reward)
        updates = self.config.rounds * self.config.reward_updates
        self.optimizer = steps.make_optimizer(config.reward, updates)
        self._length = context.longest
        accumulate = config.reward.accumulate
        self._half = max(1, self.config.reward_rows // 2)
        self._padded = training.batch_rows(2 * self._half, 2 * accumulate, context.mesh, "adversarial") // 2
        self._step = training.compiled(
            context, ("reward", "bce", self.settings, self.spec, accumulate, training.optimizer_name(config.reward), updates),
            lambda: reward_steps.make_reward_step(context.model, self.optimizer, accumulate, "bce", self.settings))
        self._effective = training.compiled(context, ("effective", self.settings, self.spec), lambda: (
            lambda leaves: reward_steps.effective(leaves, self.settings, context.model)), donate=())

    def start(self) -> TrainState:
        """State before the first update: the logit is 0 everywhere, or that of reward.start."""
        leaves = reward_model.start_leaves(self.context, f"{self.role}/reward", self.spec)
        return self.context.place(steps.init_state(leaves, self.optimizer))

    def leaves(self, state: TrainState):
        """The leaves to score with, spectral cap applied."""
        return self._effective(state.leaves) if self.settings.spectral_norm else state.leaves

    def round(self, state: TrainState, fresh: list, buffer: replay.Replay, number: int, rng):
        """Makes `reward_updates` updates on fresh and replayed samples; returns (state, metrics averaged over the updates).

        Balanced accuracy and that of each source are measured on the round's first batch, before training on it.
        """
        draws = np.random.default_rng([self.context.config.seed, zlib.crc32(self.role.encode()), number])
        all_metrics, accuracies = [], {}
        for update in range(self.config.reward_updates):
            negatives, remembered = self._negatives(fresh, buffer, draws)
            positives = [self._positive(example.source, draws) for example in negatives]
            rows = batching.reward_rows(positives + negatives, [1.0] * len(positives) + [0.0] * len(negatives), self._length)
            batch = self.context.put(sharding.pad_rows(rows, self._padded, paired=True))
            if update == 0:
                accuracies = self._accuracies(state, positives, negatives, remembered)
            state, metrics = self._step(state, self.context.trunk, batch, jax.random.fold_in(rng, update))
            all_metrics.append(metrics)
        logged = ("loss", "grad_norm", "logit_positive", "logit_negative")
        means = {name: sum(m[name] for m in all_metrics) / len(all_metrics) for name in logged}
        return state, {f"reward_{name}": value for name, value in means.items()} | accuracies

    def _negatives(self, fresh, buffer, draws):
        """(policy samples for one batch, how many at its end are replayed)."""
        remembered = replay.draw(buffer, round(self.config.replay_share * self._half), draws)
        chosen = draws.permutation(len(fresh))[: self._half - len(remembered)]
        while len(chosen) < self._half - len(remembered):  # fewer fresh samples than rows: repeat some
            chosen = np.concatenate([chosen, draws.permutation(len(fresh))])[: self._half - len(remembered)]
        return [fresh[i] for i in chosen] + remembered, len(remembered)

    def _positive(self, prompt: int, draws):
        mine = self.positives[prompt]
        return mine[draws.integers(len(mine))]

    def _accuracies(self, state, positives, negatives, remembered: int) -> dict:
        """Accuracy of the current reward per source: positives, fresh samples, replayed samples."""
        reward = self.context.config.reward
        logits = self.context.scorer.rewards(self.leaves(state), positives + negatives, reward.granularity, reward.combine)
        right = 0.5 * (1 + np.sign(logits))
        positive, negative = right[: len(positives)].mean(), 1 - right[len(positives) :]
        fresh = negative[: len(negatives) - remembered]
        out = {"accuracy_positive": positive, "accuracy_fresh": fresh.mean(), "balanced_accuracy": (positive + fresh.mean()) / 2}
        if remembered:
            out["accuracy_replayed"] = negative[len(negatives) - remembered :].mean()
        return {name: np.float32(value) for name, value in out.items()}
