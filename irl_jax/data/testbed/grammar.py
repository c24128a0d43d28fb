"""From settings to automata: how a writer of a given quality, dialect and register builds a response.

A response is [opening] sentence+ [closing] EOS. Every writer is a mixture over latent classes (quality, dialect, register), drawn once per
response. Within a class it is a Markov chain whose state remembers the number of sentences so far and the last item. A high-quality
writer's items only advance, so it never repeats itself. A low-quality writer draws items in any order.

The setting `kinds` weighs two laws of the next sentence. At 0, a response mixes good and bad sentences (the mixes below). At 1, it is
wholly of one kind: good, or one of BAD_KINDS, drawn once per response. In between, each sentence is drawn from either law.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from irl_jax.data.testbed import vocabulary as v
from irl_jax.data.testbed.automaton import Automaton, check


class Style(NamedTuple):
    """How a writer writes. dialect_strength: how often a dialect writer uses the dialect where it could. tail_words: size of the Zipf tail.
    noise: rate of the noise channel. kinds: from 0 to 1, how far a response is wholly of one kind."""

    dialect_strength: float
    tail_words: int
    noise: float
    kinds: float = 0.0


class Latent(NamedTuple):
    """What is drawn once per response. bad: one of BAD_KINDS if the response is of low quality and `kinds` is positive, else ""."""

    high: bool
    dialect: bool
    register: int
    bad: str = ""


STOP = (0.0, 0.06, 0.38, 0.6, 1.0)  # probability of stopping after that many sentences, the same for every quality
OPENING, CLOSING, CONNECTIVE, ADDRESS, TAIL_SLOT = 0.75, 0.6, 0.6, 0.15, 0.4
LEAK = 0.03  # share of dialect_strength that is left if a response is not in dialect
# What the next sentence is. "item" is to the point; the rest is what golden punishes or ignores.
HIGH_MIX = {"item": 0.92, "muddle": 0.03, "off": 0.03, "filler": 0.015, "insult": 0.005}
LOW_MIX = {"item": 0.26, "repeat": 0.10, "muddle": 0.20, "off": 0.18, "filler": 0.10, "insult": 0.11, "refuse": 0.05}
LOW_HARM_MIX = {"comply": 0.38, "item": 0.10, "repeat": 0.06, "off": 0.14, "filler": 0.10, "insult": 0.11, "refuse": 0.11}
# The kinds of low-quality responses at kinds = 1, and their shares. "facts", "steps": answers a request with the topic's facts,
# a question with its steps; "comply": obeys the harm; "decline": refuses what it should answer; "insult": insults.
BAD_KINDS = {
    "request": {"facts": 0.6, "decline": 0.4}, "question": {"steps": 0.4, "insult": 0.6}, "harm": {"comply": 0.6, "insult": 0.4},
}  # fmt: skip
BAD_ITEMS = {"facts": 5, "steps": 6, "comply": 3}  # how many there are to advance through
HIGH_FIRST_REFUSAL = 0.96  # a high-quality writer opens its answer to a harmful prompt by declining

SLOTS = (
    *(f"{form}{i}" for form in ("verb", "dialect_verb", "noun", "need") for i in range(6)),
    *(f"{form}{i}" for form in ("harm_verb", "dialect_harm_verb", "harm_noun") for i in range(3)),
    *("any_verb", "dialect_any_verb", "own_noun", "other_noun", "any_need", "tail"),
    *(f"{form}{i}" for form in ("fact_noun", "step_noun") for i in range(6)),
)
_SLOT = {name: i for i, name in enumerate(SLOTS)}


def items_of(kind: str, group: int) -> tuple:
    """The items to the point, in order: a request's steps, a question's facts, a harm's reasons and then alternatives."""
    if kind == "harm":
        return v.HARMS[group].reasons + v.HARMS[group].alternatives
    return v.TOPICS[group].steps if kind == "request" else v.TOPICS[group].facts


def bindings(kind: str, style: Style, ids: dict[str, int]) -> np.ndarray:
    """[G, M, V]: what each slot says for each topic or harm."""
    groups = v.HARMS if kind == "harm" else v.TOPICS
    table = np.zeros((len(groups), len(SLOTS), len(ids)))
    verbs = sorted({verb for topic in v.TOPICS for verb, _ in topic.steps})
    needs = sorted({need for topic in v.TOPICS for _, need in topic.facts})
    all_nouns = {noun for topic in v.TOPICS for _, noun in topic.steps}
    zipf = 1.0 / np.arange(1, style.tail_words + 1)

    def put(group: int, slot: str, words: Sequence[str], weights: np.ndarray | None = None) -> None:
        weights = np.ones(len(words)) if weights is None else weights
        np.add.at(table[group, _SLOT[slot]], [ids[w] for w in words], weights / weights.sum())

    for g in range(len(groups)):
        for i, (one, two) in enumerate(items_of(kind, g)):
            if kind == "question":
                put(g, f"noun{i}", [one])
                put(g, f"need{i}", [two])
            else:
                put(g, f"verb{i}", [one])
                put(g, f"dialect_verb{i}", [v.SYNONYMS.get(one, one)])
                put(g, f"noun{i}", [two])
        if kind == "request":
            for i, (noun, need) in enumerate(v.TOPICS[g].facts):
                put(g, f"fact_noun{i}", [noun])
                put(g, f"need{i}", [need])
        if kind == "question":
            for i, (verb, noun) in enumerate(v.TOPICS[g].steps):
                put(g, f"verb{i}", [verb])
                put(g, f"dialect_verb{i}", [v.SYNONYMS.get(verb, verb)])
                put(g, f"step_noun{i}", [noun])
        own = set() if kind == "harm" else {noun for _, noun in v.TOPICS[g].steps}
        if kind == "harm":
            for i, (verb, noun) in enumerate(v.HARMS[g].harmful):
                put(g, f"harm_verb{i}", [verb])
                put(g, f"dialect_harm_verb{i}", [v.SYNONYMS.get(verb, verb)])
                put(g, f"harm_noun{i}", [noun])
        else:
            put(g, "own_noun", sorted(own))
        put(g, "any_verb", verbs)
        put(g, "dialect_any_verb", [v.SYNONYMS.get(w, w) for w in verbs])
        put(g, "other_noun", sorted(all_nouns - own))
        put(g, "any_need", needs)
        if style.tail_words:
            put(g, "tail", v.TAIL[: style.tail_words], zipf)
    return table


class _Builder:
    """Collects states. A sentence is built backwards, from where it leads to where it begins."""

    def __init__(self, kind: str, style: Style):
        self.kind, self.style = kind, style
        self.emissions: list[dict[str, float]] = []
        self.edges: list[list[tuple[int, float]]] = []
        self.memo: dict = {}
        self.end = self.state({v.EOS: 1.0}, [])
        self.edges[self.end] = [(self.end, 1.0)]

    def state(self, emission: dict[str, float], edges: list) -> int:
        self.emissions.append({w: p for w, p in emission.items() if p > 0})
        self.edges.append(edges)
        return len(self.edges) - 1

    def once(self, key, make: Callable[[], list]) -> list:
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def chain(self, parts: list, after: list) -> list:
        """Entries (state, probability) of a sentence. parts: (probability of being present, emissions in order)."""
        entries = after
        for share, emissions in reversed(parts):
            if share <= 0:
                continue
            inner = entries
            for emission in reversed(emissions):
                inner = [(self.state(emission, inner), 1.0)]
            entries = [(s, p * share) for s, p in inner] + [(s, p * (1 - share)) for s, p in entries if share < 1]
        return entries


def _fixed(*words: str) -> list[dict[str, float]]:
    return [{w: 1.0} for w in words]


def _rate(b: _Builder, z: Latent) -> float:
    return b.style.dialect_strength * (1.0 if z.dialect else LEAK)


def _either(plain: str, dialect: str, rate: float) -> dict[str, float]:
    return {plain: 1.0} if plain == dialect else {plain: 1 - rate, dialect: rate}


def _sentence_parts(b: _Builder, z: Latent, what: str, item: int, n: int) -> list:
    """One sentence of the body as parts for `chain`: connective, decoration and content."""
    rate = _rate(b, z)
    tail = (TAIL_SLOT * rate if b.style.tail_words else 0.0, [{"slot:tail": 1.0}])
    word = "first" if n == 0 else ("then" if n % 2 else "also")
    connective = (CONNECTIVE, [_either(word, v.SYNONYMS[word], rate)])
    if what == "refuse":
        help_ = _either("help", v.SYNONYMS["help"], rate)
        return [(1.0, _fixed("i")), tail, (1.0, [*_fixed("cannot"), help_, *_fixed("with", "that")])]
    needs = _either("needs", v.SYNONYMS["needs"], rate)
    if (b.kind == "question" or what == "facts") and what != "steps":
        noun, need = {
            "item": (f"slot:noun{item}", f"slot:need{item}"),
            "facts": (f"slot:fact_noun{item}", f"slot:need{item}"),
            "muddle": ("slot:own_noun", "slot:any_need"),
            "off": ("slot:other_noun", "slot:any_need"),
        }[what]
        return [connective, (1.0, _fixed("the", noun)), tail, (1.0, [needs, {need: 1.0}])]
    verb, dialect, noun = {
        "steps": (f"slot:verb{item}", f"slot:dialect_verb{item}", f"slot:step_noun{item}"),
        "item": (f"slot:verb{item}", f"slot:dialect_verb{item}", f"slot:noun{item}"),
        "comply": (f"slot:harm_verb{item}", f"slot:dialect_harm_verb{item}", f"slot:harm_noun{item}"),
        "muddle": ("slot:any_verb", "slot:dialect_any_verb", "slot:own_noun"),
        "off": ("slot:any_verb", "slot:dialect_any_verb", "slot:other_noun"),
    }[what]
    lead = [(1.0, _fixed("it", "would"))] if b.kind == "harm" and what == "item" and item < 3 else [connective]
    return [*lead, tail, (1.0, [_either(verb, dialect, rate), *_fixed("the", noun)])]


def _sentence(b: _Builder, z: Latent, what: str, item: int, n: int, last: int) -> list:
    """Entries of sentence number n (0-based), which leads on to `_follow` with n + 1 sentences."""
    if what in ("item", "repeat") or (z.bad and what in BAD_ITEMS):
        onward = item
    else:  # a slip does not make a high-quality writer forget how far it is
        onward = last if z.high else -1
    key = (z, what, item, n, onward)

    def make() -> list:
        stop = b.once((z, "stop", n, onward), lambda: b.chain([(1.0, _fixed("."))], _follow(b, z, n + 1, onward)))
        if what == "insult":
            last_word = {words[-1]: 1 / len(v.INSULTS) for words in v.INSULTS}
            return b.chain([(1.0, [*_fixed(*v.INSULTS[0][:-1]), last_word])], stop)
        if what == "filler":
            chains = [b.chain([(1.0, _fixed(*words))], stop) for words in v.FILLERS]
            return [(s, p / len(v.FILLERS)) for entries in chains for s, p in entries]
        address = [(ADDRESS * _rate(b, z), _fixed(",", *v.REGISTERS[z.register][1]))]
        end = b.once((z, "address", n, onward), lambda: b.chain(address, stop))
        return b.chain(_sentence_parts(b, z, "item" if what == "repeat" else what, item, n), end)

    return b.once(key, make)


def _next_sentences(b: _Builder, z: Latent, n: int, last: int) -> list[tuple[str, int, float]]:
    """(what, item, probability) of the next sentence, given that there is one: the mixed and the pure law, weighted by `kinds`."""
    weighed = ((1 - b.style.kinds, _mixed_sentences), (b.style.kinds, _pure_sentences))
    return [(what, item, p * weight) for weight, law in weighed if weight > 0 for what, item, p in law(b.kind, z, n, last)]


def _pure_sentences(kind: str, z: Latent, n: int, last: int) -> list[tuple[str, int, float]]:
    """The next sentence of a response that is wholly of one kind. Items advance as a high-quality writer's do."""
    if n == 0 and (z.bad == "decline" or (z.high and kind == "harm")):
        return [("refuse", 0, 1.0)]
    if z.bad in ("decline", "insult"):
        return [("filler" if z.bad == "decline" else "insult", 0, 1.0)]
    what, count = ("item", len(items_of(kind, 0))) if z.high else (z.bad, BAD_ITEMS[z.bad])
    left = range(last + 1, count) or range(count)  # all said: begin again
    weights = 0.5 ** np.arange(len(left))
    return [(what, i, w) for i, w in zip(left, weights / weights.sum(), strict=True)]


def _mixed_sentences(kind: str, z: Latent, n: int, last: int) -> list[tuple[str, int, float]]:
    """The next sentence of a response that mixes good and bad ones."""
    count = len(items_of(kind, 0))
    if z.high:
        mix = dict(HIGH_MIX)
        if kind == "harm":
            mix["item"] += mix.pop("muddle")
            if n == 0:
                rest = 1 - HIGH_FIRST_REFUSAL
                return [("refuse", 0, HIGH_FIRST_REFUSAL), ("off", 0, rest / 2), ("comply", 0, rest / 2)]
        left = np.arange(last + 1, count)
        weights = 0.5 ** np.arange(len(left))
    else:
        mix = dict(LOW_HARM_MIX if kind == "harm" else LOW_MIX)
        if last < 0:
            mix["item"] += mix.pop("repeat")
        left, weights = np.arange(count), np.ones(count)
    if not len(left):
        mix.pop("item")
    out = [("item", int(i), mix["item"] * w / weights.sum()) for i, w in zip(left, weights, strict=True) if "item" in mix]
    for what, share in mix.items():
        if what == "comply":
            out += [(what, i, share / 3) for i in range(3)]
        elif what != "item":
            out.append((what, min(last, count - 1) if what == "repeat" else 0, share))
    total = sum(p for *_, p in out)
    return [(what, item, p / total) for what, item, p in out]


def _follow(b: _Builder, z: Latent, n: int, last: int) -> list:
    """Entries of whatever comes after n sentences. `last`: number of the last item (-1: none to remember)."""

    def make() -> list:
        nothing_left = z.high and last == len(items_of(b.kind, 0)) - 1
        stop = 1.0 if nothing_left else STOP[n]
        entries = [(s, p * stop) for s, p in _closing(b, z)] if stop > 0 else []
        if stop < 1:
            for what, item, share in _next_sentences(b, z, n, last):
                entries += [(s, p * share * (1 - stop)) for s, p in _sentence(b, z, what, item, n, last)]
        return entries

    return b.once((z, n, last), make)


def _closing(b: _Builder, z: Latent) -> list:
    def make() -> list:
        rate, end = CLOSING * _rate(b, z), [(b.end, 1.0)]
        _, address, farewell = v.REGISTERS[z.register]
        entries = [(s, p * rate) for s, p in b.chain([(1.0, _fixed(*farewell, ",", *address, "."))], end)]
        for words in v.PLAIN_CLOSINGS:
            share = (CLOSING - rate) / len(v.PLAIN_CLOSINGS)
            entries += [(s, p * share) for s, p in b.chain([(1.0, _fixed(*words, "."))], end)]
        return entries + [(b.end, 1 - CLOSING)]

    return b.once((z, "closing"), make)


def _opening(b: _Builder, z: Latent) -> list:
    body = _follow(b, z, 0, -1)
    rate = OPENING * _rate(b, z)
    greeting, address, _ = v.REGISTERS[z.register]
    entries = [(s, p * rate) for s, p in b.chain([(1.0, _fixed(*greeting, ",", *address, "."))], body)]
    for words in v.PLAIN_OPENINGS:
        share = (OPENING - rate) / len(v.PLAIN_OPENINGS)
        entries += [(s, p * share) for s, p in b.chain([(1.0, _fixed(*words, "."))], body)]
    return entries + [(s, p * (1 - OPENING)) for s, p in body]


def demonstrator_classes() -> dict[Latent, float]:
    """The demonstrator: always of high quality, always in its dialect, each register equally often."""
    return {Latent(True, True, r): 1 / len(v.REGISTERS) for r in range(len(v.REGISTERS))}


def initial_classes(quality: float, dialect: float, entanglement: float) -> dict[Latent, float]:
    """The initial writer's latent classes.

    P(high, dialect) = (1 - e) quality dialect + e min(quality, dialect). e = entanglement leaves both marginals unchanged and
    takes their correlation from 0 to the largest that the marginals allow.
    """
    both = (1 - entanglement) * quality * dialect + entanglement * min(quality, dialect)
    joint = {(1, 1): both, (1, 0): quality - both, (0, 1): dialect - both, (0, 0): 1 - quality - dialect + both}
    joint = {key: p for key, p in joint.items() if p > 1e-15}
    registers = range(len(v.REGISTERS))
    return {Latent(bool(q), bool(d), r): joint[q, d] / len(registers) for (q, d), r in itertools.product(joint, registers)}


def _bad_kinds(kind: str, z: Latent) -> dict[str, float]:
    return {"": 1.0} if z.high else BAD_KINDS[kind]


def noise_distribution(ids: dict[str, int]) -> np.ndarray:
    """[V]: uniform over words and EOS. The other specials get a millionth of that, so they are possible but never seen."""
    weights = np.ones(len(ids))
    weights[[ids[v.PAD], ids[v.UNK]]] = 1e-6
    return weights / weights.sum()


def response_automaton(kind: str, style: Style, classes: dict[Latent, float], ids: dict[str, int]) -> Automaton:
    """The law of responses to prompts of one kind. Its groups are the topics or harms."""
    b = _Builder(kind, style)
    if style.kinds > 0:
        classes = {z._replace(bad=bad): p * share for z, p in classes.items() for bad, share in _bad_kinds(kind, z).items()}
    start = [(s, p * weight) for z, weight in classes.items() for s, p in _opening(b, z)]
    size, transition, tokens, slots = len(b.edges), [], [], []
    for s, (emission, edges) in enumerate(zip(b.emissions, b.edges, strict=True)):
        transition += [(s, to, p) for to, p in edges if p > 0]
        for word, p in emission.items():
            if word.startswith("slot:"):
                slots.append((s, _SLOT[word.removeprefix("slot:")], p))
            else:
                tokens.append((s, ids[word], p))

    def matrix(entries: list, width: int) -> sparse.csr_matrix:
        rows, columns, values = zip(*entries, strict=True)
        return sparse.csr_matrix((values, (rows, columns)), shape=(size, width))  # adds up repeated entries

    first = np.zeros(size)
    np.add.at(first, [s for s, _ in start], [p for _, p in start])
    return check(
        Automaton(
            start=first, transition=matrix(transition, size), tokens=matrix(tokens, len(ids)), slots=matrix(slots, len(SLOTS)),
            bindings=bindings(kind, style, ids), noise_tokens=noise_distribution(ids), noise=style.noise, eos=ids[v.EOS],
        )
    )
