"""Tells control tokens from text that spells them: "<|im_end|>" in a record is those ten characters, in a chat template it is the token.

In strings that go from a template to the tokenizer, a control token is marked: it is between OPEN and CLOSE. Unicode keeps these out of
texts, and `irl_jax.data.sources` refuses them in records. `encode` reads marked tokens as tokens, and everything else as text, whatever it
spells. Control tokens are the tokenizer's special tokens, and the added tokens in brackets of any kind by which its chat template tells
turns apart. Some tokenizers don't call the latter special. They are all those around a system or user turn, and the outermost ones of an
assistant or tool turn. A marker inside such a turn or in the template's own system prompt (<think>) is content: the template may look for
it in a record, and text that spells it gets its token. A token of a single character, such as a "!" used for padding, is also a letter of
the text, and not a control token.
"""

from __future__ import annotations

import json
import os
import re
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from irl_jax.errors import UserError

OPEN, CLOSE = "\ufdd0", "\ufdd1"  # around a control token
_HIDDEN, _END = "\ufdd2", "\ufdd3"  # around the number of a text hidden from a template
RESERVED = re.compile(f"[{OPEN}-{_END}]")
_STAND_IN = re.compile(f"{_HIDDEN}(\\d*){_END}")
_ROLE = re.compile(r"\w[\w .-]{0,63}")
SENTINEL = "sentinel7f3a91c4"  # the content of turns when a template is tried out
_NOT_LETTERS = re.compile(r"[\W_]+")
_BRACKETED = re.compile(r"[^\w\s].*[^\w\s]", re.DOTALL)


def mark(tokenizer, text: str) -> str:
    """The text with every control token that it spells out marked. Those already marked stay as they are."""
    pattern = _vocabulary(tokenizer).pattern
    return text if pattern is None else pattern.sub(lambda found: f"{OPEN}{found[0].strip(OPEN + CLOSE)}{CLOSE}", text)


def spells(tokenizer, text: str) -> bool:
    """Whether the text spells an unmarked control token, which is read as text."""
    pattern = _vocabulary(tokenizer).pattern
    return pattern is not None and any(found[0][0] != OPEN for found in pattern.finditer(text))


def marked(name: str | None) -> str:
    """A control token with its marks; "" if there is none."""
    return f"{OPEN}{name}{CLOSE}" if name else ""


def unmarked(text: str) -> str:
    """The text for people to read: its control tokens are spelt out, without marks."""
    return text.replace(OPEN, "").replace(CLOSE, "")


def as_text(text: str) -> str:
    """A text that no record's check has seen, such as a model's own. Replaces what is reserved for marks (by U+FFFD, as usual)."""
    return text if text.isascii() else RESERVED.sub("\ufffd", text)


def encode(tokenizer, texts: Sequence[str], special: bool = False) -> list[list[int]]:
    """The ids of each text. `special`: with what the tokenizer's own rules put around it."""
    if not texts:
        return []
    return [encoded.ids for encoded in _vocabulary(tokenizer).core.encode_batch_fast(list(texts), add_special_tokens=special)]


# ---------------------------------------------------------------- templates


def hide(tokenizer, messages: Sequence[Mapping]) -> tuple[list[dict], list[str]]:
    """(messages whose texts spell no control token, the hidden texts), for a template to render. `reveal` is the way back.

    Text that could form a control token together with the template's text beside it is kept apart from that text. A template may make
    tokens of roles ("<|" + role + "|>"). So a role that is not one of SPEAKERS must be a plain word that does not name a control token.

    Raises: UserError for any other role.
    """
    vocabulary, hidden = _vocabulary(tokenizer), []
    for turn in messages:
        role = turn.get("role")
        if isinstance(role, str) and role not in SPEAKERS and (not _ROLE.fullmatch(role) or _letters(role) in vocabulary.letters):
            raise UserError(f"role {role[:80]!r} is no speaker's: give one word, and none that names a control token")

    def stand_in(text: str) -> str:
        hidden.append(text)
        return f"{_HIDDEN}{len(hidden) - 1}{_END}"

    def safe(value):
        if isinstance(value, Mapping):
            return {safe(key): safe(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [safe(item) for item in value]
        if not isinstance(value, str) or vocabulary.pattern is None:
            return value
        return _guarded(vocabulary.pattern.sub(lambda found: stand_in(found[0]), as_text(value)), vocabulary)

    return [{key: item if key == "role" else safe(item) for key, item in turn.items()} for turn in messages], hidden


def reveal(tokenizer, text: str, hidden: Sequence[str]) -> str:
    """What a template rendered from hidden messages: its own control tokens are marked, and the hidden texts are back in place as text.

    Raises: ValueError if the template has cut into a hidden text.
    """
    text = _STAND_IN.sub(lambda found: hidden[int(found[1])] if found[1] else "", mark(tokenizer, text))
    if _HIDDEN in text or _END in text:
        raise ValueError("the template cuts into a text")
    return text


SPEAKERS = frozenset(("system", "developer", "user", "human", "assistant", "model", "tool", "function", "ipython", "environment",
                      "observation", "context", "document", "documents"))  # roles that templates make tokens of: <|user|>


def _letters(name: str) -> str:
    return _NOT_LETTERS.sub("", name).lower()


def _guarded(text: str, vocabulary: _Vocabulary) -> str:
    """The text with an empty stand-in at each end that could be part of a control token whose other parts the template writes."""
    body = text.strip()
    if not body:
        return text
    before, after, nothing = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()):], _HIDDEN + _END
    first = nothing if body.startswith(vocabulary.rests) or any(body in name for name in vocabulary.names) else ""
    last = nothing if body.endswith(vocabulary.begins) else ""
    return f"{before}{first}{body}{last}{after}"


# ---------------------------------------------------------------- tokenizers


class _Vocabulary(NamedTuple):
    """core: a tokenizers.Tokenizer with the same ids that knows control tokens only by their marked names. pattern: of their plain names,
    marked or not; None if there are none. letters: of the names. begins, rests: their proper prefixes and suffixes."""

    made_of: tuple
    core: Any
    pattern: re.Pattern | None
    names: tuple[str, ...]
    letters: frozenset[str]
    begins: tuple[str, ...]
    rests: tuple[str, ...]


_known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _vocabulary(tokenizer) -> _Vocabulary:
    """The tokenizer's vocabulary, made once. Raises: UserError for a tokenizer that is not of the tokenizers library."""
    found = _known.get(tokenizer)
    made_of = (len(tokenizer), getattr(tokenizer, "chat_template", None))  # changes if tokens are added or a template is set
    if found is None or found.made_of != made_of:
        core = getattr(tokenizer, "backend_tokenizer", None)
        if core is None:
            raise UserError(f"the tokenizer ({type(tokenizer).__name__}) is none of the tokenizers library, by which control tokens are "
                            "told from text; save it as tokenizer.json")
        table = json.loads(core.to_str())
        found = _known[tokenizer] = _made(made_of, table, _between_turns(tokenizer, table["added_tokens"]))
    return found


def _between_turns(tokenizer, added: Sequence[Mapping]) -> set[str]:
    """The added tokens in brackets by which the chat template tells turns apart; none if there is no template."""
    names = sorted((token["content"] for token in added if _BRACKETED.fullmatch(token["content"])), key=len, reverse=True)
    if not names or not tokenizer.chat_template:
        return set()
    either = "|".join(map(re.escape, names))
    pattern, beside = re.compile(either), rf"(?:{either})\s*(?:\w+\s*)?"  # a token, and a role's name after it
    system, user, answer, used = ({"role": role, "content": SENTINEL} for role in ("system", "user", "assistant", "tool"))
    asked, answered, told = (_rendered(tokenizer, turns) for turns in ([user], [user, answer], [system, user]))
    again = _rendered(tokenizer, [user, answer, user]).split(SENTINEL)[-2:]
    # A system prompt may name markers, so only the tokens at its start and beside the record's own text in it count.
    parts = [again[0].removeprefix(answered.rpartition(SENTINEL)[2]), *again[1:], *told.split(SENTINEL)[1:],
             *(found[0] for text in (asked, told) for found in re.finditer(rf"^(?:{beside})+", text)),
             *(found[0] for found in re.finditer(rf"(?:{beside})+$", told.partition(SENTINEL)[0]))]
    found = {name for part in parts for name in pattern.findall(part)}
    heads = []
    for before, after in ((asked, answered), (answered, _rendered(tokenizer, [user, answer, used]))):
        head, _, tail = after[len(os.path.commonprefix([before, after])):].partition(SENTINEL)
        heads, tails = pattern.findall(head), pattern.findall(tail)
        found.update(heads[:1] + [name for name in tails[-1:] if name.replace("/", "", 1) not in heads[1:]])
    return found


def _rendered(tokenizer, turns: list[dict]) -> str:
    """The turns as the chat template renders them; "" if it refuses them."""
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # noqa: BLE001 - templates are programs; `chat` says what is wrong with one that is used
        return ""


def _made(made_of: tuple, table: dict, between: set[str]) -> _Vocabulary:
    from tokenizers import Tokenizer

    names = sorted((token["content"] for token in table["added_tokens"]
                    if len(token["content"]) > 1 and (token["special"] or token["content"] in between)), key=len, reverse=True)
    renamed = {name: marked(name) for name in names}
    for token in table["added_tokens"]:
        if token["content"] in renamed:
            token.update(content=renamed[token["content"]], normalized=False, single_word=False)
    table["model"] = _model(table["model"], renamed)
    table["truncation"] = table["padding"] = None
    core = Tokenizer.from_str(json.dumps(table))
    assert all(core.token_to_id(token["content"]) == token["id"] for token in table["added_tokens"]), "an added token has another id"
    either = "|".join(map(re.escape, names))
    return _Vocabulary(made_of, core, re.compile(f"{OPEN}(?:{either}){CLOSE}|{either}") if names else None, tuple(names),
                       frozenset(map(_letters, names)), _parts(name[:end] for name in names for end in range(1, len(name))),
                       _parts(name[end:] for name in names for end in range(1, len(name))))


def _parts(parts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(parts))


def _model(model: dict, renamed: Mapping[str, str]) -> dict:
    """A model's table under the new names. Its vocabulary may have the names too, and text that spells one must not find it there."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary = {renamed.get(name, name): number for name, number in vocabulary.items()}
    else:
        vocabulary = [[renamed.get(piece, piece), score] for piece, score in vocabulary]
    model = {**model, "vocab": vocabulary}
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = renamed.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & renamed.keys()]
    return model
