"""The embedded world: prompts, writers and texts drawn from a seed, and what is exactly known about them."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from irl_jax.data.sources import Corpus, PairRecord, Record
from irl_jax.data.testbed import coverage, golden, grammar, vocabulary
from irl_jax.data.testbed import prompts as prompt_module
from irl_jax.data.testbed.automaton import sample, token_logprobs
from irl_jax.errors import UserError

KIND_SHARES = {"request": 0.5, "question": 0.25, "harm": 0.25}


class World(NamedTuple):
    """A drawn world. tokenizer: word-level. corpus: the demonstrator's records and the pairs. pretraining: the initial writer's records.
    demonstrator, initial: {kind of prompt: automaton}."""

    tokenizer: Any
    corpus: Corpus
    pretraining: list
    demonstrator: dict
    initial: dict
    ids: dict

    def golden(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Golden reward of each response, float64 [n] in [0, 1]; see `golden.py` for the formula."""
        return np.array([golden.golden_score(p, r) for p, r in zip(prompts, responses, strict=True)], np.float64)

    def demonstrator_logprobs(self, prompts: Sequence[str], responses: Sequence[Sequence[int]]) -> np.ndarray:
        """Exact log-probability of token sequences under the demonstrator, noise channel included.

        Args:
          prompts: n prompts of the world. responses: n lists of token ids, EOS last if the response ended. Without EOS, the result is for
            a response that begins with these ids.
        Returns:
          float64 [n], nats per sequence.
        Raises:
          ValueError: a prompt is not one of the world's, or an id is outside the vocabulary.
        """
        return np.array([logp.sum() for logp in self.demonstrator_token_logprobs(prompts, responses)], np.float64)

    def demonstrator_token_logprobs(self, prompts: Sequence[str], responses: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Each token's exact log-probability given those before it, float64 [tokens] per response. Sums to `demonstrator_logprobs`."""
        return [logp for logp, _ in _by_kind(self.demonstrator, prompts, responses)]

    def initial_logprobs(self, prompts: Sequence[str], responses: Sequence[Sequence[int]]) -> np.ndarray:
        """Exact log-probability of token sequences under the initial writer; as `demonstrator_logprobs`."""
        return np.array([logp.sum() for logp, _ in _by_kind(self.initial, prompts, responses)], np.float64)

    def demonstrate(self, prompts: Sequence[str], seed: int) -> list[list[int]]:
        """One response per prompt, drawn from the demonstrator's exact law: token ids, EOS included."""
        return _write(self.demonstrator, prompts, generator(seed, "demonstrate"))

    def write_initially(self, prompts: Sequence[str], seed: int) -> list[list[int]]:
        """One response of the initial writer per prompt: token ids, EOS included."""
        return _write(self.initial, prompts, generator(seed, "write_initially"))

    def sentence_counts(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """How often each kind of sentence occurs in each response, float64 [n, kinds]; the last kind is "other" (see `coverage`)."""
        return coverage.kind_counts(prompts, responses)

    def grammar_report(self, prompts: Sequence[str], responses: Sequence) -> dict[str, float]:
        """How far responses (texts, or token ids) are from the demonstrator's grammar.

        Returns: noise_rate, the mean over tokens of the filtered posterior, under the demonstrator's law, that the token came from the
        noise channel. off_grammar_share, the share of tokens (EOS aside) in sentences that are not in the grammar.
        """
        sequences = [self._ids(r) if isinstance(r, str) else list(r) for r in responses]
        posteriors = [noise for _, noise in _by_kind(self.demonstrator, prompts, sequences)]
        total = sum(len(p) for p in posteriors)
        off = words = 0
        for sequence in sequences:
            for sentence in golden.sentences(self._text(sequence)):
                words += len(sentence)
                off += len(sentence) * (golden.read_sentence(tuple(sentence)).form == "garbled")
        return {
            "noise_rate": float(sum(p.sum() for p in posteriors) / total) if total else 0.0,
            "off_grammar_share": off / words if words else 0.0,
        }

    def _ids(self, text: str) -> list[int]:
        unknown = self.ids[vocabulary.UNK]
        return [self.ids.get(w, unknown) for w in prompt_module.split_words(text)]

    def _text(self, ids: Sequence[int]) -> str:
        return text_of(ids, list(self.ids))


def text_of(ids: Sequence[int], words: Sequence[str]) -> str:
    """The text of token ids without specials, as the tokenizer decodes them."""
    text = " ".join(words[i] for i in ids if not words[i].startswith("<"))
    for mark in vocabulary.PUNCTUATION:
        text = text.replace(" " + mark, mark)
    return text


def generator(seed: int, purpose: str) -> np.random.Generator:
    """A separate generator for each (seed, purpose), so draws for different purposes are independent."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def _meanings(prompts: Sequence[str]) -> list:
    found = [prompt_module.read_prompt(p) for p in prompts]
    for prompt, meaning in zip(prompts, found, strict=True):
        if meaning.group < 0:
            raise ValueError(f"{prompt!r} is not a prompt of the testbed: it names no topic")
    return found


def _split_by_kind(automata: dict, prompts: Sequence[str]):
    found = _meanings(prompts)
    for kind, automaton in automata.items():
        rows = [i for i, m in enumerate(found) if m.kind == kind]
        if rows:
            yield automaton, rows, np.array([found[i].group for i in rows])


def _by_kind(automata: dict, prompts: Sequence[str], responses: Sequence[Sequence[int]]) -> list:
    """(log-probs, posteriors of noise) of each sequence, in the order given."""
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts and {len(responses)} responses")
    out: list = [None] * len(prompts)
    for automaton, rows, groups in _split_by_kind(automata, prompts):
        for i, *result in zip(rows, *token_logprobs(automaton, groups, [responses[i] for i in rows]), strict=True):
            out[i] = result
    return out


def _write(automata: dict, prompts: Sequence[str], rng: np.random.Generator) -> list[list[int]]:
    out: list = [None] * len(prompts)
    for automaton, rows, groups in _split_by_kind(automata, prompts):
        for i, response in zip(rows, sample(automaton, groups, rng), strict=True):
            out[i] = response
    return out


@functools.lru_cache(maxsize=1)
def _vocabulary() -> tuple[str, ...]:
    return tuple(vocabulary.words(prompt_module.template_words()))


def _check_settings(t) -> None:
    for name in ("dialect_strength", "entanglement", "initial_quality", "initial_dialect", "label_noise", "noise", "kinds"):
        if not 0.0 <= t[name] <= 1.0:
            raise UserError(f"config data.testbed.{name} is {t[name]}: it must lie between 0 and 1")
    if t.noise <= 0.0:
        raise UserError(f"config data.testbed.noise is {t.noise}: it must be positive, so that no response has probability zero")
    if not 0 <= t.tail_words <= len(vocabulary.TAIL):
        raise UserError(f"config data.testbed.tail_words is {t.tail_words}: it must lie between 0 and {len(vocabulary.TAIL)}")
    for name in ("pretrain_responses", "demonstrations", "pairs", "eval_prompts", "development_prompts", "prompts"):
        least = 0 if name in ("pretrain_responses", "pairs", "prompts") else 1
        if t[name] < least:
            raise UserError(f"config data.testbed.{name} is {t[name]}: it must be at least {least}")


def _share(kind: str, count: int) -> int:
    """How many of `count` prompts are of a kind. Requests take what rounding leaves, so the shares add up."""
    if kind == "request":
        return count - sum(_share(k, count) for k in KIND_SHARES if k != kind)
    return round(KIND_SHARES[kind] * count)


def split_prompts(counts: dict[str, int], seed: int) -> dict[str, list[str]]:
    """Disjoint sets of prompts, each with the kinds in their shares; "rest" is what is left over.

    Raises UserError if the world has too few prompts.
    """
    rng = generator(seed, "prompts")
    out: dict[str, list[str]] = {name: [] for name in [*counts, "rest"]}
    for kind, pool in prompt_module.prompt_pool().items():
        pool = [pool[i] for i in rng.permutation(len(pool))]
        taken = 0
        for name, count in counts.items():
            share = _share(kind, count)
            out[name] += pool[taken : taken + share]
            taken += share
        if taken > len(pool) // 2:
            raise UserError(
                f"config data.testbed asks for {taken} {kind} prompts and the world, which keeps half for pretraining, has "
                f"{len(pool)}: lower demonstrations, development_prompts or eval_prompts"
            )
        out["rest"] += pool[taken:]
    return {name: [chosen[i] for i in rng.permutation(len(chosen))] for name, chosen in out.items()}


def _pretraining_prompts(rest: list[str], count: int, rng: np.random.Generator) -> list[str]:
    """Prompts for the initial writer's responses, with the kinds in their shares and with repetition."""
    by_kind = {kind: [p for p in rest if prompt_module.read_prompt(p).kind == kind] for kind in KIND_SHARES}
    kinds = rng.choice(len(KIND_SHARES), size=count, p=list(KIND_SHARES.values()))
    names, draws = list(KIND_SHARES), rng.random(count)
    return [by_kind[names[k]][int(u * len(by_kind[names[k]]))] for k, u in zip(kinds, draws, strict=True)]


def _more_prompts(rest: list[str], count: int, rng: np.random.Generator) -> list[str]:
    """The first prompts of `rest`, with the kinds in their shares. Raises: UserError if it has too few."""
    out: list[str] = []
    for kind in KIND_SHARES:
        pool, share = [p for p in rest if prompt_module.read_prompt(p).kind == kind], _share(kind, count)
        if share > len(pool):
            raise UserError(
                f"config data.testbed.prompts = {count}: {share} of them are {kind} prompts and the world has {len(pool)} that neither "
                "pretraining nor another split uses: lower it, pretrain_responses or demonstrations"
            )
        out += pool[:share]
    return [out[i] for i in rng.permutation(len(out))]


def _pairs(initial: dict, prompts: list[str], words: Sequence[str], label_noise: float, seed: int) -> list[PairRecord]:
    """Two responses of the initial writer per (training) prompt. The one that golden prefers is first unless the label is swapped.

    Ties are dropped, so there are fewer pairs than prompts.
    """
    first = _write(initial, prompts, generator(seed, "pairs first"))
    second = _write(initial, prompts, generator(seed, "pairs second"))
    swapped = generator(seed, "pairs labels").random(len(prompts)) < label_noise
    out = []
    for prompt, ids_a, ids_b, swap in zip(prompts, first, second, swapped, strict=True):
        a, b = text_of(ids_a, words), text_of(ids_b, words)
        difference = golden.golden_score(prompt, a) - golden.golden_score(prompt, b)
        if difference and a and b:
            out.append(PairRecord(prompt, a, b) if (difference > 0) != swap else PairRecord(prompt, b, a))
    return out


def build_world(testbed_config, seed: int) -> World:
    """Draws a world. The same settings and seed give the identical world.

    Args:
      testbed_config: `config.data.testbed`. seed: the run's seed; `testbed_config.seed_offset` is added to it.
    Raises:
      UserError: a setting is out of range.
    """
    t, seed = testbed_config, int(seed) + int(testbed_config.seed_offset)
    _check_settings(t)
    words = _vocabulary()
    ids = {word: i for i, word in enumerate(words)}
    style = grammar.Style(t.dialect_strength, t.tail_words, t.noise, t.kinds)
    classes = grammar.initial_classes(t.initial_quality, t.initial_dialect, t.entanglement)
    best = grammar.demonstrator_classes()
    demonstrator = {k: grammar.response_automaton(k, style, best, ids) for k in prompt_module.KINDS}
    initial = {k: grammar.response_automaton(k, style, classes, ids) for k in prompt_module.KINDS}
    counts = {"evaluation": t.eval_prompts, "development": t.development_prompts, "train": t.demonstrations}
    prompts = split_prompts(counts, seed)

    def records(automata: dict, chosen: list[str], purpose: str) -> list[Record]:
        responses = [text_of(ids_, words) for ids_ in _write(automata, chosen, generator(seed, purpose))]
        # EOS as noise at the very start gives an empty text, which is not a record.
        return [Record(p, r) for p, r in zip(chosen, responses, strict=True) if r]

    splits = {name: records(demonstrator, prompts[name], name) for name in ("train", "development", "evaluation")}
    train = prompts["train"]
    pairs = _pairs(initial, [train[i % len(train)] for i in range(t.pairs)], words, t.label_noise, seed)
    chosen = _pretraining_prompts(prompts["rest"], t.pretrain_responses, generator(seed, "pretraining prompts"))
    used = set(chosen)
    more = _more_prompts([p for p in prompts["rest"] if p not in used], t.prompts, generator(seed, "more prompts"))
    return World(
        tokenizer=vocabulary.make_tokenizer(list(words)),
        corpus=Corpus(splits["train"], splits["development"], splits["evaluation"], pairs, prompts=more),
        pretraining=records(initial, chosen, "pretraining"),
        demonstrator=demonstrator,
        initial=initial,
        ids=ids,
    )
