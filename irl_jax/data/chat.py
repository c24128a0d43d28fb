"""Conversations -> text by the tokenizer's chat template: what is prompt, what is response, and which token ends a turn.

In the text, the template's control tokens are marked. What a turn's content spells is not one (see irl_jax/data/controls.py).
"""

from __future__ import annotations

import datetime
import os
import re
from typing import Any, NamedTuple

from irl_jax.data import controls
from irl_jax.errors import UserError

_SYSTEM, _USER = {"role": "system", "content": "-"}, {"role": "user", "content": "-"}
_SPEAKER, _ROLES = re.compile(r"(?:^|\n\n)(Human|Assistant):"), {"Human": "user", "Assistant": "assistant"}
_CHANGED = "the tokenizer's chat template changes the assistant's turn, or leaves it out; give prompt and response, not messages"


class Chat(NamedTuple):
    """A tokenizer with a chat template; `of` makes one.

    end_id: the token that the template puts after the assistant's turn, such as <|im_end|>; None if there is none.
    spells_bos: whether rendered text begins with the BOS token. now: the time that the template writes; None: the present.
    """

    tokenizer: Any
    now: datetime.datetime | None = None
    end_id: int | None = None
    spells_bos: bool = False

    def demonstration(self, messages: list, sampled: bool = False) -> tuple[str, str]:
        """(prompt, response) of a conversation whose last turn is the assistant's. Joined, they are a prefix of the rendered text.

        If the conversation waits for the assistant's turn, the response is "". The prompt is the generation prompt, as
        `apply_chat_template(..., add_generation_prompt=True)` gives it, including earlier assistant turns. The response is what follows, up
        to and including the end-of-turn token. It includes the template's whitespace and what the template puts before the content (an
        empty thought, say) and after it. The prompt ends with the assistant's header instead if the template has no generation prompt, or
        one that the turn does not begin with: one that opens a thought, before a turn with no thought or an empty one. `sampled`: the last
        turn was sampled after the generation prompt. It follows that prompt as it is if the template would not show all of it.

        Raises: UserError if the template refuses the conversation, or changes the turn's content by more than whitespace.
        """
        *turns, last = messages
        if last["role"] != "assistant":
            return self.prompt(messages), ""
        bare, asked, header, after = self._around(turns)
        closing = _turn_end(self.tokenizer, after)[0]
        if sampled:  # the template's text between the content and its end-of-turn token was sampled too
            last = {**last, "content": last["content"].removesuffix(closing.partition(controls.OPEN)[0])}
        content, text = last["content"], self.render([*turns, last])
        shown = text[len(os.path.commonprefix([bare, header, text])) :]
        kept = text.startswith((asked, header)) and text.endswith(after) and _squeezed(content) in _squeezed(shown)
        if not kept and not sampled:
            raise UserError(_CHANGED)
        if sampled:
            opened = self._opened(turns, asked, header)
            whole = asked + controls.as_text(content).removeprefix(opened) + after
            if not kept or opened and content.startswith(opened) and _squeezed(text) != _squeezed(whole):
                header, text = asked, whole
        prompt = self._cut(text, asked, header)
        return prompt, text[len(prompt) : len(text) - len(after)] + closing

    def prompt(self, messages: list) -> str:
        """The text after which the assistant's next turn is sampled. Raises: UserError if the template refuses the conversation."""
        return self._around(messages)[1]

    def question(self, messages: list) -> tuple[str, str]:
        """(prompt, the part of it that belongs to the assistant's turn: "<think>\n" if it opens a thought). Raises: as `prompt`."""
        _, asked, header, _ = self._around(messages)
        return asked, self._opened(messages, asked, header)

    def _around(self, turns: list) -> tuple[str, str, str, str]:
        """For an assistant's turn after `turns`: (`turns` alone, the generation prompt, all text before its content, what follows it)."""
        asked, bare = (self.render(turns, add_generation_prompt=asks) for asks in (True, False))
        header, after = self._sides(turns)
        if asked == bare and header[len(asked):].strip():  # no generation prompt: the header replaces it
            asked = header
        return bare, asked, header, after

    def _sides(self, turns: list, *later: dict) -> tuple[str, str]:
        """The text before and after the content of an assistant's turn between `turns` and `later`."""
        sentinel = controls.SENTINEL
        while any(sentinel in turn["content"] for turn in turns):
            sentinel += "x"
        header, found, after = self.render([*turns, {"role": "assistant", "content": sentinel}, *later]).partition(sentinel)
        if not found:
            raise UserError(_CHANGED)
        return header, after

    def _opened(self, turns: list, asked: str, header: str) -> str:
        """What a generation prompt says beyond the assistant's header; "" if that is not text."""
        if not asked.startswith(header):  # a last turn may have an (empty) thought when an earlier turn has none
            try:
                header = self._sides(turns, _USER)[0]
            except UserError:
                return ""
        opened = asked[len(header) :] if asked.startswith(header) else ""
        return "" if controls.OPEN in opened else opened

    def _cut(self, text: str, asked: str, header: str) -> str:
        """The prompt of a rendered conversation: the generation prompt; or the header, if the text begins only with that, or if a token
        crosses the generation prompt's end."""
        if not text.startswith(asked):
            return header
        if asked != header and text.startswith(header):
            whole, *starts = controls.encode(self.tokenizer, [text, asked, header])
            begins = [whole[: len(start)] == start for start in starts]
            return header if begins == [False, True] else asked
        return asked

    def render(self, messages: list, **how) -> str:
        """The text of a conversation, with its control tokens marked. Raises: UserError if the template refuses it."""
        shown, hidden = controls.hide(self.tokenizer, messages)
        try:
            rendered = self.tokenizer.apply_chat_template(shown, tokenize=False, **self._dated(), **how)
            return controls.reveal(self.tokenizer, rendered, hidden)
        except Exception as error:  # templates refuse by raise_exception; they are programs, so any other failure ends up here too
            raise UserError(f"the tokenizer's chat template refuses the conversation ({' '.join(str(error).split())[:200]})") from error

    def _dated(self) -> dict:
        """Arguments that make a template that asks for the time (`strftime_now`) write `now`. transformers passes no functions to it."""
        template = self.tokenizer.get_chat_template() if self.now else ""
        if not self.now or "strftime_now" not in template:
            return {}
        return {"chat_template": _CLOCK + template, "irl_jax_now": [[f"%{code}", self.now.strftime(f"%{code}")] for code in _CODES]}


_CODES = (*"aAwdbBmyYHIpMSfjUWcxXeFTDRhGuV", "-d", "-m", "-H", "-I", "-M", "-S", "-j")  # of strftime
_CLOCK = """{%- macro strftime_now(format) -%}{%- set made = namespace(text=format) -%}{%- for code, value in irl_jax_now -%}
{%- set made.text = made.text.replace(code, value) -%}{%- endfor -%}{{ made.text }}{%- endmacro -%}"""


def turns_of(prompt: str) -> list[dict]:
    """The conversation in a prompt: the turns of a transcript in HH-RLHF's form ("\\n\\nHuman: ...", "\\n\\nAssistant: ..."), or one user
    turn."""
    parts = _SPEAKER.split(prompt)
    if len(parts) < 5 or parts[0].strip() or parts[1] != "Human" or parts[-2:] != ["Assistant", ""]:
        return [{"role": "user", "content": prompt}]
    turns: list[dict[str, str]] = []
    for who, text in zip(parts[1:-2:2], parts[2:-2:2], strict=True):
        if turns and turns[-1]["role"] == _ROLES[who]:  # a few speak twice in a row, which templates refuse
            turns[-1]["content"] += "\n\n" + text.strip()
        else:
            turns.append({"role": _ROLES[who], "content": text.strip()})
    return turns


def of(tokenizer, now: datetime.datetime | None = None) -> Chat | None:
    """The tokenizer's Chat; None if it has no template. `now`: see Chat."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    chat = Chat(tokenizer, now)
    for turns in ([_USER], [_SYSTEM, _USER]):
        try:
            _, prompt, _, after = chat._around(turns)
            bos = controls.marked(tokenizer.bos_token)
            return Chat(tokenizer, now, _turn_end(tokenizer, after)[1], bool(bos) and prompt.startswith(bos))
        except UserError:  # some need a system turn first; if one needs still more, each conversation will tell
            continue
    return chat


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _turn_end(tokenizer, after: str) -> tuple[str, int | None]:
    """(text, id) of what ends a turn: `after` up to and including its first control token, and that token. Without one: its text, None."""
    body, found, rest = after.partition(controls.OPEN)
    if not found:
        return body.rstrip(), None
    name = rest.partition(controls.CLOSE)[0]
    return body + controls.marked(name), tokenizer.convert_tokens_to_ids(name)
