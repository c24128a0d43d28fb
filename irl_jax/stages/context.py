"""What the stages of a run share: data, tokenizer, model, mesh, and the roles' leaves kept in the workdir.

Stages share data only through the workdir. This module reads it, loading each thing once per process.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import itertools
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from irl_jax import checkpoint, distributed, hf, paths, roles, sharding, variants
from irl_jax.data import chat, sources, streaming, tokenize
from irl_jax.data.tokenize import TokenReport
from irl_jax.errors import UserError
from irl_jax.models import families, transformer
from irl_jax.stages import scoring
from irl_jax.types import Example


def from_scratch(config, vocabulary: int) -> transformer.ModelConfig:
    """The architecture that a run without model.path initialises: config.model's sizes, and a context as long as its longest rows."""
    longest = config.data.max_prompt_tokens + config.data.max_response_tokens
    return families.from_size(config.model, vocabulary, max(config.pretrain.row_tokens, config.sft.row_tokens, longest))


def as_configured(base: transformer.ModelConfig, config) -> transformer.ModelConfig:
    """An architecture with this config's compute settings."""
    m, adapter = config.model, config.adapter
    return dataclasses.replace(base, dtype=m.dtype, scan_layers=m.scan_layers, remat=m.remat, loss_chunk=m.loss_chunk,
                               vocab_multiple=m.vocab_multiple, adapter_scale=adapter.alpha / adapter.rank if adapter.rank else 0.0)


def _distinct(examples: Sequence[Example]) -> list[np.ndarray]:
    """The examples' distinct prompts."""
    return list({example.prompt.tobytes(): example.prompt for example in examples}.values())


@jax.jit
def _finite(tree):
    """Whether each leaf is all finite."""
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree)


class Reader:
    """A finished run's folder, read only. It replaces a Workdir in `generate` and `score`."""

    def __init__(self, path):
        self.path = paths.of(path)

    def stage(self, name: str) -> Path:
        """A stage's folder."""
        return self.path / name


class Context:
    """One run: `config` (locked ConfigDict) and `workdir` (irl_jax.workdir.Workdir).

    base: where the files of config.model.path are now; "" if they haven't moved. began: the time that a chat template writes.
    """

    def __init__(self, config, workdir, base: str = ""):
        if base and not config.model.path:
            raise UserError(f"--base={base}: this run began from scratch, so that no base model can have moved")
        self.config, self.workdir, self.base = config, workdir, base
        self.began = datetime.datetime.now()
        self.mesh = sharding.make_mesh(config.mesh)

    def key(self, purpose: str) -> jax.Array:
        """The random key for a purpose: fold_in(seed, crc32(purpose))."""
        return jax.random.fold_in(jax.random.key(self.config.seed), zlib.crc32(purpose.encode()) & 0x7FFFFFFF)

    def variant(self, method) -> Context:
        """This run with a method's own settings. Everything loaded or compiled is shared."""
        if method.config is self.config:
            return self
        shared = ("trunk", "scorer", "steps", "samplers", "_leaves", "_data", "corpus", "demonstrations", "development", "pairs",
                  "training_prompts", "tokenizer")
        for name in shared:
            getattr(self, name)
        other = copy.copy(self)
        other.config = method.config
        return other

    def directory(self, name: str) -> Path:
        """A stage's folder in the workdir, created if missing."""
        return self.workdir.stage(name)

    def say(self, line: str) -> None:
        """Prints one line to the user."""
        distributed.say(line)

    # ------------------------------------------------------------------ data

    @cached_property
    def is_testbed(self) -> bool:
        """Whether the data come from the embedded testbed."""
        return self.config.data.source == "testbed"

    @cached_property
    def world(self):
        """The testbed's world, or None."""
        if not self.is_testbed:
            return None
        if self.config.model.path:
            raise UserError("config.model.path: the testbed brings its own vocabulary; set data.source to your records, or leave "
                            "model.path empty")
        from irl_jax.data import testbed

        return testbed.build_world(self.config.data.testbed, self.config.seed)

    @cached_property
    def folder(self) -> Path:
        """The Hugging Face folder of the initial model."""
        if not self.config.model.path:
            raise UserError("config.model.path: name a Hugging Face folder or hub model for this data source "
                            "(only the testbed initialises from scratch)")
        return Path(hf.resolve(self.base) if self.base else hf.resolve(self.config.model.path, self.config.model.revision))

    @cached_property
    def tokenizer(self):
        """The world's tokenizer, or the initial model's."""
        return self.world.tokenizer if self.is_testbed else hf.load_tokenizer(self.folder)

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a response. Training appends the first. The chat template's end of turn is among them."""
        ids = hf.eos_ids(None if self.is_testbed else self.folder, self.tokenizer)
        end = None if self.chat is None else self.chat.end_id
        return ids if end is None or end in ids else (*ids, end)

    @cached_property
    def chat(self) -> chat.Chat | None:
        """The tokenizer's chat template, or None."""
        return chat.of(self.tokenizer, self.began)

    @property
    def eos_id(self) -> int:
        """The EOS that ends training responses."""
        return self.eos_ids[0]

    @cached_property
    def pad_id(self) -> int:
        """The id that pads rows; masks don't depend on it."""
        return hf.pad_id(None if self.is_testbed else self.folder, self.tokenizer)

    @cached_property
    def corpus(self) -> sources.Corpus:
        """The records of the three splits and the pairs; prints one line about them (two if streamed)."""
        corpus, stream = self._data
        if stream:
            self.say(f"data: {stream.size} records are streamed for SFT; these are held in memory for all else:")
        left_out = sources.left_out(corpus.counts)
        more = f", {len(corpus.prompts)} more training prompts" if self.config.data.prompts_source or corpus.prompts else ""
        self.say(f"data: {len(corpus.train)} training, {len(corpus.development)} development, {len(corpus.evaluation)} evaluation "
                 f"records{more}{'; ' if left_out else ''}{left_out}")
        return corpus

    @cached_property
    def _data(self) -> tuple[sources.Corpus, streaming.Stream | None]:
        if self.is_testbed:
            return self.world.corpus, None
        load = streaming.load if self.config.data.streaming else lambda *source: (sources.load_corpus(*source), None)
        return load(self.config.data, self.config.seed, self.chat.demonstration if self.chat else None)

    @property
    def stream(self) -> streaming.Stream | None:
        """The training records that stay on disk with data.streaming, else None."""
        return self._data[1]

    def tokenize(self, records, name: str):
        """Records as Examples; prints one line about straddled boundaries and cut responses."""
        examples, report = self.encode(records)
        self._say_tokens(name, len(examples), report)
        return examples

    def encode(self, records: Sequence[sources.Record]) -> tuple[list[Example], TokenReport]:
        """Records as Examples, and the tokenizer's report."""
        data = self.config.data
        examples, report = tokenize.tokenize_records(
            self.tokenizer, records, max_prompt=data.max_prompt_tokens, max_response=data.max_response_tokens,
            truncate_prompts=data.truncate_prompts, eos_id=self.eos_id, ends=self.eos_ids, control_tokens=data.control_tokens)
        self._check_ids([record.prompt for record in records], examples)
        return examples, report

    def _check_ids(self, prompts: Sequence[str], examples: Sequence[Example]) -> None:
        """Refuses records with a token that has no embedding."""
        for part in ("prompt", "response"):
            tokenize.check_ids(self.tokenizer, itertools.starmap(tokenize.record_name, enumerate(prompts)),
                               [getattr(example, part) for example in examples], self.model.vocab_size)

    @cached_property
    def demonstrations(self):
        """Training demonstrations, tokenised."""
        return self.tokenize(self.corpus.train, "demonstrations")

    @cached_property
    def evaluation(self):
        """Evaluation records, tokenised. The response is the reference one; empty if the data have none."""
        records = self.corpus.evaluation[: self.config.eval.prompts]
        answered = self.tokenize([record for record in records if record.response], "evaluation")
        return [*answered, *self._prompts_alone([record.prompt for record in records if not record.response], "evaluation")]

    @cached_property
    def development(self):
        """Development records, tokenised."""
        return self.tokenize(self.corpus.development, "development")

    @cached_property
    def pairs(self):
        """Preference pairs, tokenised."""
        if not self.corpus.pairs:
            return []
        data = self.config.data
        pairs, report = tokenize.tokenize_pairs(
            self.tokenizer, self.corpus.pairs, max_prompt=data.max_prompt_tokens, max_response=data.max_response_tokens,
            truncate_prompts=data.truncate_prompts, eos_id=self.eos_id, ends=self.eos_ids, control_tokens=data.control_tokens)
        for side in ("chosen", "rejected"):
            self._check_ids([pair.prompt for pair in self.corpus.pairs], [getattr(pair, side) for pair in pairs])
        self._say_tokens("pairs", len(pairs), report)
        return pairs

    @cached_property
    def more_prompts(self) -> list[Example]:
        """Training prompts without demonstrations, tokenised; their responses are empty."""
        return self._prompts_alone(self.corpus.prompts, "more prompts")

    @cached_property
    def training_prompts(self) -> list[np.ndarray]:
        """Distinct training prompts as ids: those with demonstrations first, each part in the corpus's (shuffled) order."""
        return _distinct([*self.demonstrations, *self.more_prompts])

    @property
    def demonstrated_prompts(self) -> list[np.ndarray]:
        """The training prompts that have a demonstration."""
        return _distinct(self.demonstrations)

    @property
    def reward_prompts(self) -> list[np.ndarray]:
        """The training prompts to sample the reward's data for."""
        return self.training_prompts[: self.config.sample.reward_prompts]

    def _prompts_alone(self, prompts: Sequence[str], name: str) -> list[Example]:
        """Prompts as Examples without a response; prints one line about them if there are any."""
        data = self.config.data
        ids, report = tokenize.tokenize_prompts(
            self.tokenizer, prompts, max_prompt=data.max_prompt_tokens, truncate_prompts=data.truncate_prompts, eos_id=self.eos_id,
            control_tokens=data.control_tokens)
        examples = [Example(prompt, np.zeros(0, np.int32), False, i) for i, prompt in enumerate(ids)]
        self._check_ids(prompts, examples)
        if examples:
            self._say_tokens(f"{name} without responses", len(examples), report)
        return examples

    def _say_tokens(self, name, count, report):
        cut = f", {report.truncated} responses cut at the length limit" if report.truncated else ""
        apart = f", {report.straddled} tokenised apart at the boundary" if report.straddled else ""
        headless = f", {report.truncated_prompts} prompts cut to their tail" if report.truncated_prompts else ""
        spelt = f", {report.spelt} {tokenize.SPELT} (see data.control_tokens)" if report.spelt else ""
        self.say(f"{name}: {count} records{headless}{cut}{apart}{spelt}")

    # ------------------------------------------------------------------ model

    @cached_property
    def model(self) -> transformer.ModelConfig:
        """The architecture with this run's compute settings."""
        c = self.config
        if self.is_testbed:
            base = from_scratch(c, len(self.tokenizer))
        else:
            base = hf.read_config(self.folder)
            self._check_context(base)
        return as_configured(base, c)

    def _check_context(self, base):
        if self._longest_by_config > base.max_positions:
            raise UserError(f"config.data: max_prompt_tokens + max_response_tokens = {self._longest_by_config} is longer than the "
                            f"model's context of {base.max_positions} tokens; lower one of them")

    @cached_property
    def trunk(self):
        """The initial model's weights on the mesh: pretrained by this run (testbed) or imported."""
        if not self.is_testbed:
            model = self.config.model
            return hf.load_folder(self.folder, self.mesh, param_dtype=model.param_dtype, vocab_multiple=model.vocab_multiple)[1]
        pretrained = self.load("pretrain", self.like(lambda: transformer.init_trunk(jax.random.key(0), self.model)))
        return jax.tree.map(lambda leaf: leaf.astype(self.config.model.param_dtype), pretrained)

    # ------------------------------------------------------------------ roles

    def like(self, make):
        """Shapes, dtypes and shardings of the result of `make()`."""
        return sharding.like(make, self.mesh)

    def place(self, tree):
        """A tree of arrays put on the mesh by the rule table."""
        return sharding.place(tree, self.mesh)

    def put(self, batch):
        """A batch with its rows split over the mesh."""
        return sharding.put_batch(batch, self.mesh)

    def variables(self, role: str) -> dict:
        """The variables to apply the model with as `role`."""
        return roles.variables(self.trunk, self.leaves(role))

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence: prompt and response."""
        return self._longest_by_config

    @property
    def _longest_by_config(self) -> int:
        return self.config.data.max_prompt_tokens + self.config.data.max_response_tokens

    @cached_property
    def scorer(self) -> scoring.Scorer:
        """Scores finished sequences with any role's leaves."""
        return scoring.Scorer(self.model, self.mesh, self.trunk, longest=self.longest, rows=self.config.eval.batch_size)

    @cached_property
    def steps(self) -> dict:
        """Compiled training steps by name, shared by all recipes in a process."""
        return {}

    @cached_property
    def samplers(self) -> dict:
        """Compiled samplers by shape and top-p, shared by all stages in a process."""
        return {}

    def init_leaves(self, role: str, purpose: str, start=None, **how):
        """Fresh leaves of a role, on the mesh; `how` as in `roles.init_leaves`."""
        return self.place(roles.init_leaves(self.key(purpose), role, self.model, self.config.adapter.rank, self.trunk, start, **how))

    def save(self, name: str, tree) -> None:
        """Keeps a role's finished leaves under W/<name>/leaves."""
        checkpoint.save_tree(self.directory(name) / "leaves", self.place(tree))

    def load(self, name: str, like):
        """What `save` kept under the name, with the shapes and shardings of `like`."""
        if checkpoint.latest_step(self.workdir.path / name / "leaves") is None:
            raise UserError(f"{self.workdir.path}: nothing is trained under '{name}' yet; run that stage first "
                            f"(--stages={name.split('/')[0]})")
        leaves = checkpoint.load_tree(self.workdir.path / name / "leaves", like)
        for path, good in jax.tree_util.tree_leaves_with_path(_finite(leaves)):
            if not good:
                leaf = jax.tree_util.keystr(path, simple=True, separator="/")
                raise UserError(f"{self.workdir.path / name / 'leaves'}: {leaf} holds NaN or infinities, with which every result would be "
                                "NaN; train it again in a new workdir")
        return leaves

    def leaves(self, role: str):
        """A finished role's leaves: 'init' (None), 'sft', or a method's (see irl_jax.variants), for example 'reward/init_sft'."""
        if role == "init":
            return None
        if role not in self._leaves:
            trunk, rank, kind, spec = self.trunk, self.config.adapter.rank, "sft", None
            if role != "sft":
                method = variants.find(self.config, role)
                kind = "reward" if role.startswith("reward/") else "policy"
                spec = roles.RewardSpec.of(method.config.reward)
            like = self.like(lambda: roles.finished_leaves(jax.random.key(0), kind, self.model, rank, trunk, reward=spec))
            self._leaves[role] = self.load(role, like)
        return self._leaves[role]

    @cached_property
    def _leaves(self) -> dict:
        return {}

    def turns(self, prompt: str) -> list[dict]:
        """The conversation of a prompt given as by `text`: the record's messages, or what `chat.turns_of` parses from it."""
        return self._turns.get(prompt) or chat.turns_of(prompt)

    @cached_property
    def _turns(self) -> dict[str, list[dict]]:
        data, rendered = self.config.data, list(self.corpus.turns)
        prompts, _ = tokenize.tokenize_prompts(self.tokenizer, rendered, max_prompt=data.max_prompt_tokens,
                                               truncate_prompts=data.truncate_prompts, eos_id=self.eos_id,
                                               control_tokens=data.control_tokens)
        return {self.text(ids): self.corpus.turns[prompt] for prompt, ids in zip(rendered, prompts, strict=True)}

    def text(self, ids) -> str:
        """The text of ids, without special tokens and without those that end a response, special or not."""
        return tokenize.detokenize(self.tokenizer, [number for number in ids if number not in self.eos_ids])
