"""Conversations by the tokenizer's chat template: the generation prompt, the response's span, the token that ends a turn."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from test_export import GPT2
from test_tokenize import BOS, EOS, build, ids

from irl_jax import cli, hf
from irl_jax.config import default
from irl_jax.data import chat, sources
from irl_jax.data.controls import unmarked
from irl_jax.data.tokenize import tokenize_records
from irl_jax.errors import UserError
from irl_jax.models import transformer

TURNS = [{"role": "user", "content": "s"}, {"role": "assistant", "content": " ab "}]
LOOP = "{% for m in messages %}"
ASK = "{% if add_generation_prompt %}"
TEMPLATES = {  # the habits of published templates, spelt with the test tokenizer's characters
    "chatml": LOOP + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}" + ASK
              + "{{ '<|im_start|>assistant\n' }}{% endif %}",
    "trims": "<s>" + LOOP + "{{ '<|im_start|>' + m.role + '\n\n' + m.content | trim + '<|im_end|>' }}{% endfor %}" + ASK
             + "{{ '<|im_start|>assistant\n\n' }}{% endif %}",
    "brackets": "<s>" + LOOP + "{% if m.role == 'user' %}{{ '[' + m.content | trim + ']' }}{% else %}{{ ' ' + m.content | trim + ' </s>' }}"
                "{% endif %}{% endfor %}",
    "thinks": LOOP + "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{{ 'think. ' }}{% endif %}{{ m.content }}"
              "{{ '<|im_end|>\n' }}{% endfor %}" + ASK + "{{ '<|im_start|>assistant\n' }}{% endif %}",
    "headless": "{{ '<s>' }}" + LOOP + "{{ m.role }}|{{ m.content | trim }}</s>{% endfor %}",
    "gemma": "<s>{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + LOOP
             + "{{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<|im_end|>\n' }}"
             "{% endfor %}" + ASK + "{{ '<|im_start|>model\n' }}{% endif %}",
    "zephyr": LOOP + "{{ '|' + m.role + '|\n' + m.content + '</s>\n' }}{% endfor %}" + ASK + "{{ '|assistant|' }}{% endif %}",
    "reasons": LOOP + "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and '/' not in m.content %}{{ '//' }}{% endif %}"
               "{{ m.content.strip() + '<|im_end|>\n' }}{% endfor %}" + ASK + "{{ '<|im_start|>assistant\n' }}{% endif %}",
    "endless": LOOP + "{{ m.role }}. {{ m.content }}\n{% endfor %}" + ASK + "{{ 'assistant. ' }}{% endif %}",
}  # fmt: skip
SPANS = {
    "chatml": ("<|im_start|>user\ns<|im_end|>\n<|im_start|>assistant\n", " ab <|im_end|>"),
    "trims": ("<s><|im_start|>user\n\ns<|im_end|><|im_start|>assistant\n\n", "ab<|im_end|>"),
    "brackets": ("<s>[s]", " ab </s>"),
    "thinks": ("<|im_start|>user\ns<|im_end|>\n<|im_start|>assistant\n", "think.  ab <|im_end|>"),
    "headless": ("<s>user|s</s>assistant|", "ab</s>"),
    "gemma": ("<s><|im_start|>user\ns<|im_end|>\n<|im_start|>model\n", "ab<|im_end|>"),
    "zephyr": ("|user|\ns</s>\n|assistant|", "\n ab </s>"),
    "reasons": ("<|im_start|>user\ns<|im_end|>\n<|im_start|>assistant\n", "//ab<|im_end|>"),
    "endless": ("user. s\nassistant. ", " ab "),
}


def tokenizer_of(name):
    tokenizer = build(chat_template=TEMPLATES[name])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_is_the_generation_prompt_and_the_response_what_follows(name):
    tokenizer = tokenizer_of(name)
    made = chat.of(tokenizer)
    prompt, response = map(unmarked, made.demonstration(TURNS))
    assert (prompt, response) == SPANS[name] and unmarked(made.prompt(TURNS[:1])) == prompt
    assert tokenizer.apply_chat_template(TURNS, tokenize=False).startswith(prompt + response)
    if name != "headless":
        assert prompt == tokenizer.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True)
    end = {"brackets": EOS, "headless": EOS, "zephyr": EOS, "endless": None}.get(name, tokenizer.convert_tokens_to_ids("<|im_end|>"))
    assert made.end_id == end


@pytest.mark.parametrize("name", TEMPLATES)
def test_one_bos_and_one_end_which_is_the_turns(name):
    tokenizer = tokenizer_of(name)
    made = chat.of(tokenizer)
    end = EOS if made.end_id is None else made.end_id
    limits = dict(max_prompt=80, max_response=80, eos_id=EOS, ends=() if made.end_id is None else (made.end_id,))
    (example,), _ = tokenize_records(tokenizer, [sources.Record(*made.demonstration(TURNS))], **limits)
    assert example.prompt[0] == BOS and list(example.prompt).count(BOS) == 1
    assert example.ended and example.response[-1] == end and np.isin(example.response, (EOS, end)).sum() == 1
    (cut,), _ = tokenize_records(tokenizer, [sources.Record(*made.demonstration(TURNS))], **{**limits, "max_response": 2})
    assert not cut.ended and cut.response.tolist() == example.response[:2].tolist()
    plain = tokenize_records(tokenizer, [sources.Record("s", "ab")], **limits)[0][0]
    assert plain.response.tolist() == [*ids("ab"), EOS]  # what is no conversation ends in EOS


@pytest.mark.parametrize("name", TEMPLATES)
def test_many_turns_are_the_ids_of_the_rendered_text_and_only_the_last_is_trained(name):
    """Against the tokenizer on the whole text; the earlier answer, its end of turn included, belongs to the prompt."""
    tokenizer, turns = tokenizer_of(name), [*TURNS, {"role": "user", "content": " t"}, {"role": "assistant", "content": "bb"}]
    made = chat.of(tokenizer)
    (example,), _ = tokenize_records(tokenizer, [sources.Record(*made.demonstration(turns))], max_prompt=150, max_response=40, eos_id=EOS,
                                     ends=() if made.end_id is None else (made.end_id,))
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    whole = [BOS, *tokenizer(text.removeprefix("<s>"), add_special_tokens=False)["input_ids"]]
    both = [*example.prompt, *example.response]
    assert both[: -1 if made.end_id is None else None] == whole[: len(both) - (made.end_id is None)]
    assert "bb" in tokenizer.decode(example.response) and "ab" in tokenizer.decode(example.prompt)
    assert tokenizer.decode(whole[len(both):]).strip() == ""  # what is left out is whitespace
    (cut,), report = tokenize_records(tokenizer, [sources.Record(*made.demonstration(turns))], max_prompt=6, max_response=40,
                                      truncate_prompts=True, eos_id=EOS, ends=() if made.end_id is None else (made.end_id,))
    assert cut.prompt.tolist() == [BOS, *example.prompt[-5:]] and cut.response.tolist() == example.response.tolist()
    assert report.truncated_prompts == 1


def test_reasoning_that_a_template_takes_for_its_own():
    """Qwen 3's puts an empty thought before an answer that has none: one that has keeps its own."""
    made = chat.of(tokenizer_of("reasons"))
    assert unmarked(made.demonstration([TURNS[0], {"role": "assistant", "content": "t/ab"}])[1]) == "t/ab<|im_end|>"


def test_a_template_that_wants_a_system_turn_tells_its_end_of_turn():
    template = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + TEMPLATES["chatml"]
    tokenizer = build(chat_template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    assert chat.of(tokenizer).end_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_messages_beside_a_prompt_are_the_conversation(tmp_path):
    """As published sets of conversations have it: the first turn's text once more under "prompt"."""
    made, file = chat.of(tokenizer_of("chatml")), tmp_path / "d.jsonl"
    rows = [{"prompt": f"s{i}", "messages": [{"role": "user", "content": f"s{i}"}, TURNS[1]]} for i in range(3)]
    rows.append({"prompt": "p", "response": "r", "messages": None})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = default().data
    data.source, data.heldout_fraction, data.development_fraction = str(file), 0.3, 0.0
    corpus = sources.load_corpus(data, 0, made.demonstration)
    got = {tuple(record) for record in (*corpus.train, *corpus.evaluation)}
    assert got == {made.demonstration(row["messages"]) for row in rows[:3]} | {("p", "r")}


def test_content_that_stands_in_the_header_too_and_further_turns():
    made = chat.of(tokenizer_of("headless"))
    turns = [*TURNS, {"role": "user", "content": "t"}, {"role": "assistant", "content": "a"}]
    assert tuple(map(unmarked, made.demonstration(turns))) == ("<s>user|s</s>assistant|ab</s>user|t</s>assistant|", "a</s>")


@pytest.mark.parametrize("template, message", [
    (LOOP + "{{ m.content | upper }}{% endfor %}", "changes the assistant's turn"),
    (LOOP + "{{ m.content | replace('ab', 'ba') }}{% endfor %}", "changes the assistant's turn"),
    (LOOP + "{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", "changes the assistant's turn, or leaves it out"),
    ("{{ raise_exception('system turns only') }}", "refuses the conversation (system turns only)"),
    ("{{ 1 // 0 }}", "refuses the conversation ("),
    ("{% for %}", "refuses the conversation ("),
])  # fmt: skip
def test_templates_that_do_not_do_name_the_record(template, message):
    made = chat.of(build(chat_template=template))
    with pytest.raises(UserError) as caught:
        list(sources.pair_rows([("file, line 3", {"messages": TURNS})], default().data.fields, made.demonstration, False))
    assert message in str(caught.value) and str(caught.value).startswith("file, line 3: the tokenizer's chat template")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose tokenizer pads with its EOS, and whose turns end in another token that no config names."""
    path, tokenizer = tmp_path_factory.mktemp("chat"), tokenizer_of("chatml")
    tokenizer.pad_token = tokenizer.eos_token
    model = dataclasses.replace(GPT2, vocab_size=len(tokenizer), max_positions=96)
    trunk = jax.tree.map(np.array, transformer.init_trunk(jax.random.key(0), model))
    trunk["embed"]["tokens"] *= 5
    trunk["final_norm"]["bias"] += 100 * trunk["embed"]["tokens"][chat.of(tokenizer).end_id]  # ends the turn at once, most likely
    return hf.save_folder(path, model, trunk, tokenizer)


def lines_of(verb, folder, tmp_path, records, *flags):
    given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_text("".join(json.dumps(record) + "\n" for record in records))
    name = "prompts" if verb == "generate" else "data"
    assert cli.main([verb, f"--model={folder}", f"--{name}={given}", f"--out={out}", *flags]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_score_takes_conversations_as_their_text(folder, tmp_path):
    prompt, response = SPANS["chatml"]
    records = [{"messages": TURNS}, {"prompt": prompt, "response": response}, {"prompt": prompt, "response": " ab "}]
    asked, same, other = lines_of("score", folder, tmp_path, records, "--eos", "--control_tokens")
    assert asked["logprob"] == pytest.approx(same["logprob"], abs=1e-5) and asked["tokens"] == same["tokens"] == other["tokens"] == 5
    assert abs(other["logprob"] - same["logprob"]) > 1e-3  # EOS instead of the end of turn
    without = lines_of("score", folder, tmp_path, records, "--control_tokens")
    assert [line["tokens"] for line in without] == [4] * 3 and without[0]["logprob"] == pytest.approx(without[2]["logprob"], abs=1e-5)


def test_generate_takes_conversations_and_ends_at_the_end_of_turn(folder, tmp_path):
    records = [{"messages": TURNS[:1]}, {"prompt": SPANS["chatml"][0]}]
    for line in lines_of("generate", folder, tmp_path, records, "--temperature=0", "--control_tokens"):
        assert line["tokens"] == 1 and line["ended"] and line["response"] == ""


ASKED, ANSWER = TURNS[:1], {"role": "assistant", "content": "ab"}
ONE_READING = {  # forms of one record
    "messages": {"messages": [*ASKED, ANSWER]},
    "messages and response": {"messages": ASKED, "response": "ab"},
    "said twice": {"messages": [*ASKED, ANSWER], "prompt": " s\n", "response": "ab "},
    "a prompt beside messages": {"prompt": "s", "messages": ASKED, "response": "ab"},
    "empty columns": {"prompt": None, "messages": [*ASKED, ANSWER], "response": None},
    "compared": {"messages": ASKED, "chosen": "ab", "rejected": "ba"},
    "compared, with an answer": {"prompt": "s", "messages": [*ASKED, ANSWER], "chosen": "ab", "rejected": "ba"},
}  # fmt: skip


@pytest.mark.parametrize("record", ONE_READING.values(), ids=ONE_READING)
def test_a_record_is_read_one_way(record, folder, tmp_path):
    made, fields = chat.of(tokenizer_of("chatml")), default().data.fields
    (row,) = sources.pair_rows([("d, line 1", record)], fields, made.demonstration, pairs_only=False)
    assert (row.prompt, row.response) == made.demonstration([*ASKED, ANSWER]) and row.turns == ASKED
    if "chosen" in record:
        (row,) = sources.pair_rows([("d, line 1", record)], fields, made.demonstration, pairs_only=True)
        assert row.prompt == made.prompt(ASKED) and list(map(unmarked, row.pair)) == ["ab<|im_end|>", "ba<|im_end|>"]
        record = {"messages": ASKED, "response": record["chosen"]}
    (scored,) = lines_of("score", folder, tmp_path, [record], "--eos")
    (plain,) = lines_of("score", folder, tmp_path, [{"messages": [*ASKED, ANSWER]}], "--eos")
    assert (scored["logprob"], scored["tokens"]) == (plain["logprob"], 3)
    (drawn,), (asked,) = (lines_of("generate", folder, tmp_path, [one], "--seed=3") for one in (record, {"messages": ASKED}))
    assert drawn["messages"] == ASKED and {key: drawn[key] for key in asked} == asked


def test_what_a_verb_writes_the_others_read(folder, tmp_path):
    records = [{"messages": ASKED}, {"messages": [*TURNS, *ASKED]}, {"prompt": "s"}]
    at_once = lines_of("generate", folder, tmp_path, records[:2], "--temperature=0", "--max_tokens=3")
    drawn = lines_of("generate", folder, tmp_path, records, "--samples=16", "--max_tokens=3", "--temperature=300")
    # what is no text (special tokens) or becomes other tokens when it is read ("t" and "h", one token together) is passed over
    whole = [line for line in drawn if len(line["response"]) == line["tokens"] - line["ended"] and not {*"t|"} & {*line["response"]}]
    assert any("messages" in line and line["tokens"] == 3 for line in whole) and {line["response"] for line in at_once} == {""}
    for mine, theirs in zip(at_once, lines_of("score", folder, tmp_path, at_once, "--eos"), strict=True):
        assert theirs["tokens"] == mine["tokens"] == 1 and theirs["logprob"] == pytest.approx(mine["logprob"], abs=1e-4)
    scored = lines_of("score", folder, tmp_path, [*at_once, *whole])
    for mine, theirs in zip([*at_once, *whole], scored, strict=True):
        assert theirs["tokens"] == mine["tokens"] - mine["ended"] and (theirs["logprob"] == 0) == (theirs["tokens"] == 0)
        assert mine["ended"] or theirs["logprob"] == pytest.approx(mine["logprob"], rel=1e-4)
    assert len(lines_of("generate", folder, tmp_path, scored, "--max_tokens=3")) == len(scored)
    answered = [{"messages": TURNS, "logprob": -1.0}]
    assert lines_of("generate", folder, tmp_path, answered)[0]["messages"] == ASKED
    assert lines_of("score", folder, tmp_path, lines_of("score", folder, tmp_path, answered))[0]["messages"] == TURNS


@pytest.mark.parametrize("verb, record, message", [
    ("score", {"messages": TURNS[:1]}, "the last one the assistant's"),
    ("score", {"messages": "s"}, "must be a list of {role, content}"),
    ("generate", {"messages": [], "prompt": "s"}, "must be a list of {role, content}"),
    ("generate", {"messages": TURNS[1:]}, "with a turn that is not the assistant's before the answer"),
    ("score", {"messages": [TURNS[0], {"role": "assistant", "content": None}]}, "turn 2 of field 'messages' must be {role, content}"),
    ("generate", {"messages": [{"role": "user", "content": "\ud800"}]}, "turn 1' holds half of a surrogate pair"),
    ("score", {"messages": [TURNS[0], {**TURNS[1], "reasoning_content": ["\ud800"]}]}, "turn 2' holds half of a surrogate pair"),
    ("score", {"messages": [TURNS[0], {**TURNS[1], "reasoning_content": "\ufdd0"}]}, "turn 2' holds U+FDD0"),
    ("generate", {"messages": TURNS[:1], "tools": [{"type": "function"}]}, "field 'tools' is not read"),
    ("score", {"messages": TURNS, "response": "ba"}, "field 'response' is another text than the answer that field 'messages' ends with"),
    ("generate", {"messages": TURNS, "prompt": "ab"}, "field 'prompt' is another text than each turn of field 'messages' before"),
    ("score", {"messages": TURNS, "response": ["ab"]}, "field 'response' must be text, not list"),
])
def test_conversations_that_do_not_do(verb, record, message, folder, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text(json.dumps(record) + "\n")
    name = "prompts" if verb == "generate" else "data"
    assert cli.main([verb, f"--model={folder}", f"--{name}={tmp_path / 'in.jsonl'}", f"--out={tmp_path / 'out'}"]) == 2
    err = capsys.readouterr().err
    assert message in err and "line 1" in err and err.count("\n") == 1


def test_no_template_is_no_chat():
    assert chat.of(build()) is None
