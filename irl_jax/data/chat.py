"""Conversations -> text by the tokenizer's chat template: what is prompt, what is response, and which token ends a turn."""

from __future__ import annotations

from typing import Any, NamedTuple

from irl_jax.errors import UserError

_SENTINEL = "sentinel7f3a91c4"  # stands for the response while a template is rendered
_CHANGED = "the tokenizer's chat template changes the assistant's turn, or leaves it out; give prompt and response, not messages"


class Chat(NamedTuple):
    """A tokenizer with a chat template; `of` makes one.

    end_id: the token that the template puts after the assistant's turn, such as <|im_end|>; None where it puts none.
    """

    tokenizer: Any
    end_id: int | None

    def demonstration(self, messages: list) -> tuple[str, str]:
        """(prompt, response) of a conversation whose last turn is the assistant's; joined, a prefix of what the template renders.

        The prompt is the generation prompt, as `apply_chat_template(..., add_generation_prompt=True)` gives it. The response is all
        that follows, the template's whitespace and its end-of-turn token included, but not what comes after that. Where the template has
        no generation prompt, the assistant's header belongs to the prompt.

        Raises: UserError where the template refuses the conversation, or changes the turn by more than the whitespace around it.
        """
        prompt, before, after = self._around(messages[:-1])
        content, text = messages[-1]["content"], self._render(messages)
        for shown in dict.fromkeys((content, content.strip(), content.lstrip(), content.rstrip())):
            if text == before + shown + after:
                return prompt, (before + shown)[len(prompt):] + _turn_end(self.tokenizer, after)[0]
        raise UserError(_CHANGED)

    def prompt(self, messages: list) -> str:
        """What the assistant's next turn is sampled after. Raises: UserError where the template refuses the conversation."""
        return self._around(messages)[0]

    def _around(self, turns: list) -> tuple[str, str, str]:
        """The prompt, and what the template puts before and after the content of an assistant's turn that follows `turns`."""
        asked, bare = (self._render(turns, add_generation_prompt=asks) for asks in (True, False))
        before, found, after = self._render([*turns, {"role": "assistant", "content": _SENTINEL}]).partition(_SENTINEL)
        if not found:
            raise UserError(_CHANGED)
        header = before[len(asked):]
        if before.startswith(asked) and (asked != bare or not header.strip()):
            return asked, before, after
        return before, before, after

    def _render(self, messages: list, **how) -> str:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **how)
        except (TemplateError, ValueError, TypeError) as error:  # templates refuse by raise_exception
            raise UserError(f"the tokenizer's chat template refuses the conversation ({' '.join(str(error).split())[:200]})") from error


def of(tokenizer) -> Chat | None:
    """The tokenizer's Chat; None where it has no template."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    chat = Chat(tokenizer, None)
    try:
        after = chat._around([{"role": "user", "content": "-"}])[2]
    except UserError:  # it asks for more than a user's turn: each conversation will tell
        return chat
    return chat._replace(end_id=_turn_end(tokenizer, after)[1])


def _turn_end(tokenizer, after: str) -> tuple[str, int | None]:
    """(text, id) of the special token that `after` begins with, whitespace before it included in the text; ("", None) where it has none."""
    turn = after.lstrip()
    starts = [(str(token), number) for number, token in tokenizer.added_tokens_decoder.items()
              if token.special and turn.startswith(str(token))]
    if not starts:
        return "", None
    text, number = max(starts, key=lambda start: len(start[0]))
    return after[: len(after) - len(turn)] + text, number
