"""Conversations by many templates: the ids are those of `apply_chat_template(..., tokenize=True)`, and typed control tokens stay text."""

import pytest
from test_controls import NAMES, byte_level
from tokenizers import AddedToken

from irl_jax.data import chat, controls, sources
from irl_jax.data.tokenize import tokenize_prompts, tokenize_records
from irl_jax.errors import UserError

LOOP, ASK, END = "{%- for m in messages %}", "{%- if add_generation_prompt %}", "{%- endfor %}"
HEADER = "{{ '<|im_start|>' + m.role + '\n' }}"
PARSED = ("{%- if m.role == 'assistant' and '</think>' in m.content %}"
          "{{ '<think>\n' + m.content.split('</think>')[0].split('<think>')[-1].strip() + '\n</think>\n\n' "
          "+ m.content.split('</think>')[-1].strip() }}")
TEMPLATES = {
    "chatml": LOOP + HEADER + "{{ m.content + '<|im_end|>\n' }}" + END + ASK + "{{ '<|im_start|>assistant\n' }}{%- endif %}",
    "a default system prompt": "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{%- endif %}"
        + LOOP + HEADER + "{{ m.content + '<|im_end|>\n' }}" + END + ASK + "{{ '<|im_start|>assistant\n' }}{%- endif %}",
    "thoughts in the content, opened by the generation prompt": LOOP + HEADER + PARSED
        + "{%- elif m.role == 'assistant' and m.reasoning_content %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' + m.content }}"
        "{%- else %}{{ m.content }}{%- endif %}{{ '<|im_end|>\n' }}" + END + ASK + "{{ '<|im_start|>assistant\n<think>\n' }}{%- endif %}",
    "thoughts in the content": LOOP + HEADER + PARSED + "{%- else %}{{ m.content }}{%- endif %}{{ '<|im_end|>\n' }}" + END
        + ASK + "{{ '<|im_start|>assistant\n' }}{%- endif %}",
    "an empty thought in the last answer, opened by the generation prompt": LOOP + HEADER + "{%- set c = m.content %}"
        "{%- if m.role == 'assistant' and (loop.last or '</think>' in c) %}{{ '<think>\n' + (c.split('</think>')[0].split('<think>')[-1].strip() "
        "if '</think>' in c else '') + '\n</think>\n\n' + c.split('</think>')[-1].lstrip('\n') }}{%- else %}{{ c }}{%- endif %}{{ '<|im_end|>\n' }}"
        + END + ASK + "{{ '<|im_start|>assistant\n<think>\n' }}{%- endif %}",
    "a default system prompt that names markers": "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\nAnswer in <think> Thoughts "
        "</think> or <tool_call></tool_call><|im_end|>\n' }}{%- endif %}" + LOOP + HEADER + "{{ m.content + '<|im_end|>\n' }}" + END
        + ASK + "{{ '<|im_start|>assistant\n' }}{%- endif %}",
    "an answer between markers": LOOP + HEADER + "{%- if m.role == 'assistant' %}{{ '<answer>' + m.content + '</answer>' }}{%- else %}"
        "{{ m.content }}{%- endif %}{{ '<|im_end|>\n' }}" + END + ASK + "{{ '<|im_start|>assistant\n<answer>' }}{%- endif %}",
    "a turn that ends in words": LOOP + "{{ m.role + ': ' + m.content + ' (over)\n' }}" + END + ASK + "{{ 'assistant:' }}{%- endif %}",
    "turns without an end, a tool's in markers": LOOP + "{%- if m.role == 'tool' %}{{ '<|tool|>\n<tool_response>\n' + m.content "
        "+ '\n</tool_response>' }}{%- else %}{{ '<|' + m.role + '|>\n' + m.content }}{%- endif %}" + END
        + ASK + "{{ '<|assistant|>\n' }}{%- endif %}",
    "an empty thought in every answer": LOOP + "{%- if m.role == 'assistant' %}{%- set t = '' %}{%- set c = m.content %}"
        "{%- if '</think>' in c %}{%- set t = c.split('</think>')[0].split('<think>')[-1].strip() %}"
        "{%- set c = c.split('</think>')[-1].lstrip() %}{%- endif %}{{ '<|Assistant|><think>' + t + '</think>' + c }}"
        "{%- else %}{{ '<|User|>' + m.content }}{%- endif %}" + END + ASK + "{{ '<|Assistant|>' }}{%- endif %}",
    "thoughts opened and not looked for": "{{ bos_token }}" + LOOP + "{{ '<|User|>' if m.role == 'user' else '<|Assistant|>' }}"
        "{{ m.content + '<|im_end|>' }}" + END + ASK + "{{ '<|Assistant|><think>\n' }}{%- endif %}",
    "switched by words of the content": LOOP + HEADER + "{%- if '/quick' in m.content %}{{ 'quick: ' }}{%- endif %}"
        "{{ m.content.replace('<think>', '').split('</think>')[-1].strip('\n') + '<|im_end|>\n' }}" + END
        + ASK + "{{ '<|im_start|>assistant\n<think>' }}{%- endif %}",
    "headers of three tokens": "{{ bos_token }}" + LOOP + "{{ '<|head|>' + m.role + '<|/head|>\n\n' + m.content | trim + '<|eot|>' }}" + END
        + ASK + "{{ '<|head|>assistant<|/head|>\n\n' }}{%- endif %}",
    "roles renamed, no system turn": "{{ bos_token }}{%- if messages[0].role == 'system' %}{{ raise_exception('none') }}{%- endif %}" + LOOP
        + "{{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<|im_end|>\n' }}" + END
        + ASK + "{{ '<|im_start|>model\n' }}{%- endif %}",
    "instructions in brackets": "{{ bos_token }}" + LOOP + "{%- if m.role == 'assistant' %}{{ ' ' + m.content | trim + '</s>' }}"
        "{%- else %}{{ '[INST] ' + m.content | trim + ' [/INST]' }}{%- endif %}" + END,
    "tools": LOOP + "{%- if m.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response>' }}{%- else %}" + HEADER
        + "{{ m.content }}{%- for call in m.tool_calls or [] %}{{ '\n<tool_call>\n' + call.function.name + ' ' "
        "+ call.function.arguments | tojson + '\n</tool_call>' }}{%- endfor %}{%- endif %}{{ '<|im_end|>\n' }}" + END
        + ASK + "{{ '<|im_start|>assistant\n' }}{%- endif %}",
    "a role for tools": LOOP + "{{ '<|' + m.role + '|>\n' + m.content + '<|im_end|>\n' }}" + END + ASK + "{{ '<|assistant|>\n' }}{%- endif %}",
}  # fmt: skip
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<answer>", "</answer>")  # of the content, never of a turn
HEADERS = ("<|User|>", "<|Assistant|>", "<|head|>", "<|/head|>", "<|eot|>", "[INST]", "[/INST]", "<|system|>", "<|user|>",
           "<|assistant|>", "<|tool|>")  # what no tokenizer here calls special


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "<x> & é", "n": [1, 2.5, None]}}}
CONVERSATIONS = {
    "one turn": [user("What is 2+2?"), assistant("Four.")],
    "spaces around": [user("  What is 2+2?\n"), assistant(" Four.\n")],
    "a system turn": [{"role": "system", "content": "Be brief."}, user("What is 2+2?"), assistant("4")],
    "several turns": [user("a"), assistant("b"), user("c /quick"), assistant("d")],
    "a thought": [user("What is 2+2?"), assistant("<think>\nTwo and two.\n</think>\n\nFour.")],
    "a thought in one line": [user("What is 2+2?"), assistant("<think>Two and two.</think>Four.")],
    "a thought that was opened before": [user("What is 2+2?"), assistant("Two and two.\n</think>\n\nFour.")],
    "a thought apart": [user("What is 2+2?"), assistant("Four.", reasoning_content="Two and two.")],
    "an earlier thought": [user("a"), assistant("<think>\nb?\n</think>\n\nb"), user("c"), assistant("<think>\nd?\n</think>\n\nd")],
    "a user's thought": [user("What does <think> mean? </think>"), assistant("A tag.")],
    "letters of control tokens": [user("> im_end is |> a <|"), assistant("<s> is im_start")],
    "tools": [user("Look."), assistant("", tool_calls=[CALL]), {"role": "tool", "content": "A \"tree\" <b>"}, assistant("A tree.")],
    "a tool's markers": [user("Look."), assistant("x"), user("<tool_response>\nx\n</tool_response>"), assistant("y")],
    "a call in the content": [user("Look."), assistant("<tool_call>\n{}\n</tool_call>"), {"role": "tool", "content": "x"}, assistant("y")],
}


def tokenizer_of(template):
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in (*MARKERS, *HEADERS)])
    tokenizer.chat_template = template
    return tokenizer


def ids_of(tokenizer, turns):
    """(prompt, response) as the verbs have them, unless the conversation is refused."""
    made = chat.of(tokenizer)
    ends = () if made.end_id is None else (made.end_id,)
    records = [sources.Record(*made.demonstration(turns))]
    (example,), report = tokenize_records(tokenizer, records, max_prompt=900, max_response=900, eos_id=1, ends=ends)
    return example.prompt.tolist(), example.response.tolist(), report.straddled


def rendered(tokenizer, turns, **how):
    return list(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False, **how))


LEAVES_THOUGHTS_OUT = "switched by words of the content"


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_ids_are_those_of_the_template(name, turns):
    tokenizer = tokenizer_of(TEMPLATES[name])
    if name == LEAVES_THOUGHTS_OUT and "</think>" in turns[-1]["content"]:
        with pytest.raises(UserError, match="leaves it out"):
            ids_of(tokenizer, turns)
        return
    if name == "roles renamed, no system turn" and turns[0]["role"] == "system":
        with pytest.raises(UserError, match="refuses the conversation"):
            ids_of(tokenizer, turns)
        return
    spelt = tokenizer.convert_tokens_to_ids("<s>")  # which one conversation types: HF makes the token of it, and text is meant
    whole = rendered(tokenizer, turns)
    prompt, response, straddled = ids_of(tokenizer, turns)
    both = [*prompt, *response]
    if both[-1] == 1 and (len(both) > len(whole) or whole[len(both) - 1] != 1):
        both.pop()  # the EOS of a template that ends no turn
    if "<s>" in str(turns):
        assert both.count(spelt) == whole.count(spelt) - 1
        return
    assert both == whole[: len(both)] and not straddled
    assert tokenizer.decode(whole[len(both):]).strip() == ""
    asked = rendered(tokenizer, turns[:-1], add_generation_prompt=True)
    (alone,), _ = tokenize_prompts(tokenizer, [chat.of(tokenizer).prompt(turns[:-1])], max_prompt=900, eos_id=1)
    assert alone.tolist() == asked and (prompt == asked or whole[: len(asked)] != asked)


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_somebody_types_becomes_no_control_token(name):
    tokenizer, template = tokenizer_of(TEMPLATES[name]), TEMPLATES[name]
    roles = ("system", "user", "assistant", "tool") if "'<|' + m.role" in template else ()
    structure = [*NAMES, *(header for header in HEADERS if header in template or header.strip("<|>") in roles)]
    controlled = set(tokenizer.convert_tokens_to_ids(structure)) - {tokenizer.unk_token_id}

    def found(text):
        turns = [user(f"a{text}b"), assistant(text), user(text), assistant(f"{text} c")]
        prompt, response, _ = ids_of(tokenizer, turns)
        return [token for token in [*prompt, *response] if token in controlled]

    harmless = found("x")
    assert harmless and all(found(text) == harmless for token in structure for text in (token, f"{token}\n{token}"))
    tokenizer.add_tokens([AddedToken("<b>", special=False, normalized=False)])
    for marker in (*MARKERS[2:], "<b>"):  # what the template does not tell turns apart by has its token, as in transformers
        assert tokenizer.convert_tokens_to_ids(marker) in controls.encode(tokenizer, [f"a{marker}"])[0]


def test_two_spellings_of_one_thought_are_one_record():
    tokenizer = tokenizer_of(TEMPLATES["thoughts in the content, opened by the generation prompt"])
    one, other = (ids_of(tokenizer, CONVERSATIONS[name]) for name in ("a thought", "a thought apart"))
    assert one == other and tokenizer.decode(one[0]).endswith("<|im_start|>assistant\n<think>\n")
    assert tokenizer.decode(one[1]) == "Two and two.\n</think>\n\nFour.<|im_end|>"
    (plain, _, _), asked = ids_of(tokenizer, CONVERSATIONS["one turn"]), "<|im_start|>assistant\n"
    assert tokenizer.decode(plain).endswith(asked)  # a turn without a thought does not begin as the generation prompt ends


def test_a_token_across_the_end_of_the_generation_prompt_leaves_the_ids_as_they_are():
    tokenizer = tokenizer_of(TEMPLATES["an empty thought in the last answer, opened by the generation prompt"])
    tokenizer.add_tokens([AddedToken("\n\n", special=False, normalized=False)])  # as many vocabularies have it
    for name, asked in (("one turn", "</think>\n\n"), ("a thought", "<think>\n")):
        prompt, response, straddled = ids_of(tokenizer, CONVERSATIONS[name])
        assert [*prompt, *response] == rendered(tokenizer, CONVERSATIONS[name])[:-1] and not straddled
        assert tokenizer.decode(prompt).endswith(asked)


@pytest.mark.parametrize("said", ["Two and", "", "Two and two.\n</think>\n\nFour."])
@pytest.mark.parametrize("name, opened", [
    ("chatml", ""), ("thoughts in the content", ""), ("thoughts in the content, opened by the generation prompt", "<think>\n"),
    ("an empty thought in the last answer, opened by the generation prompt", "<think>\n"),
    ("thoughts opened and not looked for", "<think>\n"), (LEAVES_THOUGHTS_OUT, "<think>")])
def test_what_was_sampled_stands_after_the_prompt_that_it_was_sampled_after(name, opened, said):
    """generate writes the whole turn, with what its prompt has opened; score finds prompt and response in it again."""
    if name == "thoughts in the content" and "</think>" in said:
        pytest.skip("the template gives a thought that was not opened its opening")
    tokenizer = tokenizer_of(TEMPLATES[name])
    made, turns = chat.of(tokenizer), [user("What is 2+2?")]
    prompt, opening = made.question(turns)
    assert opening == opened and prompt == made.prompt(turns)
    end = controls.marked("<|im_end|>")
    assert made.demonstration([*turns, assistant(opening + said)], sampled=True) == (prompt, said + end)


def test_what_a_template_writes_after_an_answer_is_sampled_once():
    made, turns = chat.of(tokenizer_of(TEMPLATES["an answer between markers"])), [user("What is 2+2?")]
    expected = (made.prompt(turns), "Four.</answer>" + controls.marked("<|im_end|>"))
    assert made.demonstration([*turns, assistant("Four.</answer>")], sampled=True) == made.demonstration([*turns, assistant("Four.")]) == expected
    assert made.end_id == made.tokenizer.convert_tokens_to_ids("<|im_end|>")
