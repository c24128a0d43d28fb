"""The pipeline's compiled programs for a plan, each with the shapes, shardings and settings of a run of the config."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from irl_jax import drawing, policy_steps, reward_steps, roles, rollouts, sampler, sharding, steps, variants
from irl_jax.evaluation import hacking
from irl_jax.models import adapters, transformer
from irl_jax.stages import sampling, scoring, training
from irl_jax.types import PolicyBatch, PromptBatch, RewardBatch, TokenBatch

EOS, PAD = (1,), 0  # any ids do
NAMES = ("sft", "sample", "score", "reward", "prefill", "decode", "draw", "judge", "advantages", "policy")


class Program(NamedTuple):
    """One program. compiled: from `sharding.compile_step`. arguments: ShapeDtypeStructs with shardings.

    own: which arguments belong to roles, and so to `Planner.resident` too. trips: iterations of the loop without a constant bound.
    tokens: read or written, over all devices. ideal: operations that the model needs, over all devices. section: the config
    section that sets its batch.
    """

    name: str
    compiled: sharding.CompiledStep | Lowered
    arguments: tuple
    own: tuple[int, ...]
    trips: float
    tokens: int
    ideal: float
    section: str


class Work(NamedTuple):
    """Work of a pass over the model: tokens through the blocks, tokens through the unembedding, and (query, key) pairs."""

    tokens: float
    unembedded: float
    pairs: float

    def __add__(self, other):
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


class Planner:
    """Makes the programs of one config on one mesh."""

    def __init__(self, config, model, mesh):
        self.config, self.model, self.mesh = config, model, mesh
        self.rank, self.longest = config.adapter.rank, config.data.max_prompt_tokens + config.data.max_response_tokens
        kind = config.model.param_dtype
        self.trunk = self.like(lambda: jax.tree.map(lambda leaf: leaf.astype(kind), transformer.init_trunk(jax.random.key(0), model)))
        self.gae = config.policy.advantage == "gae"
        self.key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    def like(self, make):
        """Shapes, dtypes and shardings of the result of make()."""
        return sharding.like(make, self.mesh)

    def program(self, name: str) -> Program:
        """The program of one of NAMES."""
        return getattr(self, f"_{name}")()

    # ---------------------------------------------------------------------------------------------------- residents
    def state(self, role: str, section: str):
        """The training state of a role."""
        signs = {f"{rollouts.SMOOTHED}{name}": jnp.zeros(()) for name in hacking.SIGNS} if self.config.policy.stop else {}
        control = policy_steps.init_control(0.1, signs) if role == "policy" else ()
        return self.like(lambda: steps.init_state(self._leaves(role), self._optimizer(section), control))

    def _leaves(self, role: str):
        spec = roles.RewardSpec.of(self.config.reward)
        trunk = transformer.init_trunk(jax.random.key(0), self.model)
        return roles.init_leaves(jax.random.key(0), role, self.model, self.rank, trunk, reward=spec, value=self.gae and role == "policy")

    def _optimizer(self, section: str):
        return steps.make_optimizer(self.config[section], 1000)

    def leaves(self, role: str):
        """A finished role's leaves."""
        return self.like(lambda: self._leaves(role))

    def resident(self, name: str) -> dict:
        """{role: its tree} of all that is in a device's memory while a program's stage runs.

        A role stays as long as the process that trained it uses it. The trunk always stays, and sft's leaves once trained. The
        policy's stage also holds the reward (with its optimizer state if the adversarial loop trains it) and the policy's state,
        including the value's leaves and moments.
        """
        trunk = {"trunk": self.trunk}
        if name == "sft":
            return trunk | {"sft": self.state("sft", "sft")}
        if name in ("sample", "score"):
            return trunk | {"sft": self.leaves("sft")}
        if name == "reward":
            return trunk | {"sft": self.leaves("sft"), "reward": self.state("reward", "reward")}
        adversarial = bool(variants.methods(self.config, "adversarial"))
        reward = self.state("reward", "reward") if adversarial else self.leaves("reward")
        return trunk | {"sft": self.leaves("sft"), "reward": reward, "policy": self.state("policy", "policy")}

    # ---------------------------------------------------------------------------------------------------- programs
    def _sft(self):
        c = self.config.sft
        rows = training.batch_rows(c.batch_size, c.accumulate, self.mesh, "sft")
        length = max(c.row_tokens, self.longest) if c.packing else self.longest
        step = steps.make_sft_step(self.model, self._optimizer("sft"), c.accumulate)
        arguments = (self.state("sft", "sft"), self.trunk, self._rows(rows, length), self.key)
        ideal = self.operations(self._read(rows, length), training=True)
        return Program("sft", self._compiled(step, (0,)), arguments, (0, 1), 1, rows * length, ideal, "sft")

    def _sample(self):
        shape = sampling.shape_of(self.config.sample, self.config.sample.eval_samples)
        prompts, variables = scoring.round_up(shape.prompts, self.mesh), roles.variables(self.trunk, self.leaves("sft"))
        how = sampling.how(sampling.law_of(self.config.sample))
        return self._sampling("sample", prompts, shape.samples, shape.rows, lambda draw: lambda variables, prompts, key: draw(
            variables, prompts, key, None, jnp.float32(1.0)), (variables,), (0,), how)

    def _draw(self):
        c, prompts = self.config.policy, self._prompt_rows()
        reference = self.leaves("sft") if c.reference == "sft" else None
        program = self._sampling(
            "draw", prompts, c.samples, sampling.rows_of(self.config.sample, prompts, c.samples),
            lambda draw: rollouts.make_draw(self.model, draw, PAD), (self.policy_leaves(), reference, self.trunk), (0, 1, 2))
        scored = self._read(prompts * c.samples, self.longest)
        return program._replace(ideal=program.ideal + self.operations(scored), section="policy")

    def _sampling(self, name, prompts, samples, rows, around, arguments, own, how=None):
        """Sampling with `rows` rows per prompt; no sample ends early."""
        prompt, response = self.config.data.max_prompt_tokens, self.config.data.max_response_tokens
        draw = sampler.make_sampler(self.model, samples=samples, rows=rows, max_tokens=response, eos_ids=EOS, pad_id=PAD,
                                    **(how or {}))
        steps = -(-samples // rows) * (response - 1)
        ideal = self.operations(self._prefill_work(prompts)) + self.operations(self._decode_work(prompts * rows, steps))
        arguments = (*arguments, self._prompts(prompts), self.key)
        return Program(name, self._compiled(around(draw)), arguments, own, steps, prompts * (prompt + samples * response), ideal, "sample")

    def _prefill(self):
        rows, model = self._prompt_rows(), self.model
        prompts = self._prompts(rows)
        step = lambda variables, tokens, lengths: transformer.prefill(model, variables, tokens, lengths)
        arguments = (self._unstacked(), prompts.tokens, prompts.lengths)
        ideal = self.operations(self._prefill_work(rows))
        tokens = math.prod(prompts.tokens.shape)
        return Program("prefill", self._compiled(step), arguments, (0,), 1, tokens, ideal, "policy")

    def _decode(self):
        batch, model, data = self._prompt_rows(), self.model, self.config.data
        prompts, rows = self._prompts(batch), sampling.rows_of(self.config.sample, batch, self.config.policy.samples)

        def caches():
            shape = (batch, model.num_kv_heads, data.max_prompt_tokens, model.head_dim)
            layer = transformer.LayerCache(jnp.zeros(shape, model.dtype), jnp.zeros(shape, model.dtype))
            response = transformer.init_response_cache(model, batch, rows, max(data.max_response_tokens - 1, 1))
            return {"prompt_cache": (layer,) * model.num_layers, "response_cache": response}

        def step(variables, token, t, slot, lengths, prompt_cache, response_cache, uniform):
            logits, cache = transformer.decode(model, variables, token, t, slot, lengths, prompt_cache, response_cache)
            return cache, drawing.draw(logits, uniform)

        held = self.like(caches)
        tokens = self.like(lambda: {"tokens": jnp.zeros((batch, rows), jnp.int32), "weight": jnp.zeros((batch, rows))})
        number = jax.ShapeDtypeStruct((), jnp.int32, sharding=self.key.sharding)
        arguments = (self._unstacked(), tokens["tokens"], tokens["tokens"], number, prompts.lengths, held["prompt_cache"],
                     held["response_cache"], tokens["weight"])
        shardings = jax.tree.map(lambda leaf: leaf.sharding, held["response_cache"])
        compiled = Lowered(step, self.mesh, donate_argnums=6, out_shardings=(shardings, self.key.sharding))
        ideal = self.operations(self._decode_work(batch * rows, 1))
        return Program("decode", compiled, arguments, (0,), 1, batch * rows, ideal, "policy")

    def _score(self):
        rows, model = scoring.round_up(self.config.eval.batch_size, self.mesh), self.model
        step = lambda trunk, leaves, batch: steps.score_logprobs(model, trunk, leaves, batch)
        arguments = (self.trunk, self.leaves("sft"), self._rows(rows, self.longest))
        ideal = self.operations(self._read(rows, self.longest))
        return Program("score", self._compiled(step), arguments, (0, 1), 1, rows * self.longest, ideal, "eval")

    def _reward(self):
        c = self.config.reward
        rows = training.batch_rows(c.batch_size, 2 * c.accumulate, self.mesh, "reward")
        loss = "bradley_terry" if tuple(c.recipes) == ("preference",) else "bce"
        settings = reward_steps.RewardSettings.of(c, EOS)
        step = reward_steps.make_reward_step(self.model, self._optimizer("reward"), c.accumulate, loss, settings)
        arguments = (self.state("reward", "reward"), self.trunk, self._reward_rows(rows), self.key)
        work = self._read(rows, self.longest, unembed=False)
        ideal = self.operations(work, training=True, body=c.body) * c.ensemble
        return Program("reward", self._compiled(step, (0,)), arguments, (0, 1), 1, rows * self.longest, ideal, "reward")

    def _judge(self):
        c, rows = self.config, self._policy_rows()
        judge = rollouts.make_judge(self.model, "learnt", c.reward.granularity, c.reward.combine)
        ideal = self.operations(self._read(rows, self.longest, unembed=False)) * c.reward.ensemble
        arguments = (self.trunk, self.leaves("reward"), self._drawn(rows))
        return Program("judge", self._compiled(judge), arguments, (0, 1), 1, rows * self.longest, ideal, "policy")

    def _advantages(self):
        c, rows = self.config, self._policy_rows()
        settings, state = policy_steps.PolicySettings.of(c.policy), self.state("policy", "policy")
        fn = rollouts.make_advantages(self.model, settings, c.policy.samples, eos_counts=False)
        dense = c.reward.granularity == "token"
        logits = self.like(lambda: {"reward": jnp.zeros((rows, self.longest) if dense else rows)})["reward"]
        ideal = self.operations(self._read(rows, self.longest, unembed=False)) if self.gae else 0.0
        arguments = (state.leaves, self.trunk, self._drawn(rows), logits, state.control)
        return Program("advantages", self._compiled(fn), arguments, (0, 1), 1, rows * self.longest, ideal, "policy")

    def _policy(self):
        c, rows = self.config.policy, self._policy_rows()
        step = policy_steps.make_policy_step(self.model, self._optimizer("policy"), policy_steps.PolicySettings.of(c), c.accumulate)
        arguments = (self.state("policy", "policy"), self.trunk, self._policy_batch(rows), self.key)
        ideal = self.operations(self._read(rows, self.longest), training=True)
        if self.gae:
            ideal += self.operations(self._read(rows, self.longest, unembed=False), training=True)
        return Program("policy", self._compiled(step, (0,)), arguments, (0, 1), 1, rows * self.longest,
                       ideal * c.epochs, "policy")

    # ------------------------------------------------------------------------------------------------------ shapes
    def policy_leaves(self):
        """The policy's leaves without its value."""
        return {name: leaf for name, leaf in self.leaves("policy").items() if name != "value"}

    def _prompt_rows(self):
        return training.batch_rows(self.config.policy.batch_size, self.config.policy.accumulate, self.mesh, "policy")

    def _policy_rows(self):
        return self._prompt_rows() * self.config.policy.samples

    def _rows(self, rows, length):
        ids = jnp.zeros((rows, length), jnp.int32)
        return self.like(lambda: TokenBatch(ids, ids, ids, jnp.zeros((rows, length))))

    def _reward_rows(self, rows):
        ones = jnp.ones(rows)
        return self.like(lambda: RewardBatch(self._zero_rows(rows), jnp.zeros(rows, jnp.int32), ones, ones))

    def _policy_batch(self, rows):
        tokens = jnp.zeros((rows, self.longest))
        return self.like(lambda: PolicyBatch(self._zero_rows(rows), tokens, tokens, tokens, tokens, tokens[:, 0], tokens[:, 0]))

    def _drawn(self, rows):
        tokens = jnp.zeros((rows, self.longest))
        numbers, ended, weight = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool), jnp.zeros(rows)
        return self.like(lambda: rollouts.Drawn(self._zero_rows(rows), numbers, ended, tokens, tokens, weight))

    def _zero_rows(self, rows):
        ids = jnp.zeros((rows, self.longest), jnp.int32)
        return TokenBatch(ids, ids, ids, jnp.zeros((rows, self.longest)))

    def _prompts(self, rows):
        ids = jnp.zeros((rows, self.config.data.max_prompt_tokens), jnp.int32)
        return self.like(lambda: PromptBatch(ids, ids[:, 0], ids[:, 0]))

    def _unstacked(self):
        """The policy's variables layer by layer, each sharded as in the stack."""
        stacked = roles.variables(self.trunk, self.policy_leaves())

        def take(leaf):
            own = NamedSharding(self.mesh, PartitionSpec(*leaf.sharding.spec[1:]))
            return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=own)

        blocks = lambda tree: {**tree, "blocks": (jax.tree.map(take, tree["blocks"]),) * self.model.num_layers}
        return {name: blocks(tree) for name, tree in stacked.items()}

    def _compiled(self, fn, donate=()):
        return sharding.compile_step(fn, self.mesh, donate=donate)

    # ------------------------------------------------------------------------------------------------------ ideals
    def _read(self, rows, length, unembed=True):
        return Work(rows * length, rows * length if unembed else 0, rows * length * length)

    def _prefill_work(self, rows):
        prompt = self.config.data.max_prompt_tokens
        return Work(rows * prompt, rows, rows * prompt * prompt)

    def _decode_work(self, rows, rounds):
        return Work(rows * rounds, rows * rounds, rows * rounds * (self.longest - 1))

    def operations(self, work: Work, training: bool = False, body: str = "adapter") -> float:
        """The operations that a model needs, over all devices, without recomputation.

        forward = 2 P tokens + 2 V D unembedded + 4 L H E pairs + 2 A tokens. P counts the parameters of the blocks' kernels, A those
        of the adapters, V D those of the unembedding. L H E pairs counts attention's products over all pairs of a row, masked ones
        too, as usual (PaLM, arXiv 2204.02311, appendix B). Training whole trunks takes 3 times that: the backward pass computes
        gradients of inputs and parameters. With adapters the trunk has no gradient: its products count 2 times, attention's and the
        adapters' 3 times. A frozen body is only read.
        """
        m = self.model
        heads = (m.num_heads + m.num_kv_heads) * 2 * m.head_dim * m.width
        kernels = m.num_layers * (heads + (3 if m.gated_mlp else 2) * m.width * m.mlp_width)
        whole = self.rank == 0 or body == "trunk"
        trunk = 2.0 * kernels * work.tokens + 2.0 * m.vocab_size * m.width * work.unembedded
        attention = 4.0 * m.num_layers * m.num_heads * m.head_dim * work.pairs
        adapters = 0.0 if whole or body == "frozen" else 2.0 * self._adapter_size() * work.tokens
        if not training or body == "frozen":
            return trunk + attention + adapters
        return (3 if whole else 2) * trunk + 3 * (attention + adapters)

    def _adapter_size(self) -> int:
        adapter = jax.eval_shape(lambda: adapters.init_adapter(jax.random.key(0), self.model, self.rank))
        return sum(leaf.size for leaf in jax.tree.leaves(adapter))


class Lowered:
    """`jax.jit` of a function with its own settings, traced under the mesh as in `sharding.compile_step`."""

    def __init__(self, fn, mesh, **settings):
        def traced(*arguments):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return fn(*arguments)

        self.lower = jax.jit(traced, **settings).lower
