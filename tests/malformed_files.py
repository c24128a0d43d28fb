"""Malformed records, data and models, one a row: how it is made, the command line that meets it, and the line that is said of it."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import struct

from malformed_box import DEEP, GOOD, LONG, RIGHT, WANTED, Box, Case, lines, link, many, pickled, replaced, safetensors, without


def another_token(table: dict) -> None:
    """Adds tokens to a tokenizer.json, the last with an id past the embeddings."""
    largest = max(token["id"] for token in [*table["added_tokens"], *({"id": number} for number in table["model"]["vocab"].values())])
    for i in range(20):
        name = "<tag>" if i == 19 else f"<tag{i}>"
        table["added_tokens"].append({**table["added_tokens"][-1], "content": name, "special": False, "id": largest + 1 + i})


RECORDS = {
    "bytes that are no UTF-8": Case(lambda b: b.score(GOOD + b'{"prompt": "\xff"}\n'), "~/in.jsonl, line 2: byte 12 is not UTF-8"),
    "UTF-16": Case(lambda b: b.generate('{"prompt": "w1"}\n'.encode("utf-16")),
        "~/in.jsonl, line 1: byte 0 is not UTF-8; it looks like UTF-16: save it as UTF-8"),
    "a NUL byte in a text": Case(lambda b: b.score(b'{"prompt": "w1\x00", "response": "w2"}\n'),
        "~/in.jsonl, line 1: not JSON (… at column 15)"),
    "NUL bytes alone": Case(lambda b: b.generate(b"\x00" * 4096), "~/in.jsonl, line 1: not JSON (… at column 1)"),
    "gzip cut short": Case(lambda b: b.generate(gzip.compress(GOOD * 2000, mtime=0)[:-20]),
        "~/in.jsonl: the gzip file is truncated or damaged (…); fetch it again"),
    "gzip's first bytes alone": Case(lambda b: b.score(b"\x1f\x8b"),
        "~/in.jsonl: the gzip file is truncated or damaged (…); fetch it again"),
    "gzip of another method": Case(lambda b: b.score(b"\x1f\x8b\x09" + b"\0" * 20),
        "~/in.jsonl: the gzip file is truncated or damaged (…); fetch it again"),
    "gzip with a flipped byte": Case(lambda b: b.score(gzip.compress(GOOD, mtime=0)[:-8] + b"\0" * 8),
        "~/in.jsonl: the gzip file is truncated or damaged (…); fetch it again"),
    "gzip by its name only": Case(lambda b: b.score("not found", name="in.jsonl.gz"), "~/in.jsonl.gz, line 1: not JSON (… at column 1)"),
    "a page": Case(lambda b: b.score("\n<!doctype html>"), f"~/in.jsonl: is a page of HTML or XML; {WANTED}"),
    "a zip archive": Case(lambda b: b.score(b"PK\x03\x04" + b"\0" * 26 + b"in.jsonl"), f"~/in.jsonl: is a zip archive; {WANTED}"),
    "zstd": Case(lambda b: b.generate(b"(\xb5/\xfd$\0"), f"~/in.jsonl: is a zstd file; {WANTED}"),
    "xz": Case(lambda b: b.generate(lzma.compress(GOOD)), f"~/in.jsonl: is an xz file; {WANTED}"),
    "bzip2 within gzip": Case(lambda b: b.generate(gzip.compress(bz2.compress(GOOD))), f"~/in.jsonl: is a bzip2 file; {WANTED}"),
    "Parquet": Case(lambda b: b.score(b"PAR1\x15\x04" + b"\xff" * 40 + b"PAR1"), f"~/in.jsonl: is a Parquet file; {WANTED}"),
    "an Arrow stream": Case(lambda b: b.score(b"\xff\xff\xff\xff\x10\x01\0\0"), f"~/in.jsonl: is an Arrow file; {WANTED}"),
    "a JSON array": Case(lambda b: b.score(json.dumps([json.loads(GOOD)] * 2, indent=1)), f"~/in.jsonl: is a JSON array; {WANTED}"),
    "a JSON array on one line": Case(lambda b: b.generate(b"\xef\xbb\xbf" + lines([{"prompt": "w1"}])),
        f"~/in.jsonl: is a JSON array; {WANTED}"),
    "CSV with an index and marks": Case(lambda b: b.score(",prompt (en),answer/gold?\n0,w1,w2\n"), f"~/in.jsonl: is a CSV file; {WANTED}"),
    "CSV of one column": Case(lambda b: b.score("text\nw1 w2\n", name="in.CSV"), f"~/in.CSV: is a CSV file; {WANTED}"),
    "gzip twice": Case(lambda b: b.score(gzip.compress(gzip.compress(GOOD))), f"~/in.jsonl: is a gzip file in a gzip file; {WANTED}"),
    "an old pickle": Case(lambda b: b.score(b"\x80\x02}q\0."), f"~/in.jsonl: is a pickle; {WANTED}"),
    "Feather": Case(lambda b: b.score(b"FEA1\0\0\0\0"), f"~/in.jsonl: is an Arrow file; {WANTED}"),
    "UTF-16 without its mark": Case(lambda b: b.score(GOOD.decode().encode("utf-16-be")), f"~/in.jsonl: is UTF-16 text; {WANTED}"),
    "a pointer of Git LFS": Case(lambda b: b.score("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        f"~/in.jsonl: is a pointer of Git LFS instead of the file (git lfs pull); {WANTED}"),
    "CSV": Case(lambda b: b.score('prompt,"the response"\nw1,"w2"\n'), f"~/in.jsonl: is a CSV file; {WANTED}"),
    "TSV": Case(lambda b: b.score("prompt\tresponse\nw1\tw2\n", name="in.tsv"), f"~/in.tsv: is a TSV file; {WANTED}"),
    "a gzip of one line without end": Case(lambda b: b.score(gzip.compress(b'{"prompt": "' + b"x" * 2**26, 1, mtime=0)),
        "~/in.jsonl, line 1: longer than 64 MiB; JSON lines have one record a line"),
    "a line of 10 MB that is no JSON": Case(lambda b: b.score(b'{"prompt": "' + b"x" * LONG),
        "~/in.jsonl, line 1: not JSON (… at column 12)"),
    "a prompt of 1 MB": Case(lambda b: b.generate(lines({"prompt": ("w1" + " " * (LONG // 300)) * 30})),
        "~/in.jsonl, line 1: the prompt is 30 tokens; with --max_tokens=4 that is longer than the context of 24; shorten the "
        "prompt or lower --max_tokens"),
    "a key of 10 MB": Case(lambda b: b.score(lines({"k" * LONG: 1})),
        "~/in.jsonl, line 1: no field 'prompt' (its fields: kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk...)"),
    "a thousand keys": Case(lambda b: b.score(lines({f"key{i}": i for i in range(1000)})),
        "~/in.jsonl, line 1: no field 'prompt' (its fields: key0, key1, key10, key100, key101, key102, key103, key104, key105, key106, "
        "key107, key108, key109, key11, key110, key111, key112, key113, key114, key115, and 980 more)"),
    "a key twice": Case(lambda b: b.generate(b'{"prompt": "w1", "prompt": "w2"}\n'),
        "~/in.jsonl, line 1: not usable JSON (the key 'prompt' stands in one object twice)"),
    "a key twice in a turn": Case(lambda b: b.generate(b'{"messages": [{"role": "user", "content": "w1", "content": "w2"}]}\n'),
        "~/in.jsonl, line 1: not usable JSON (the key 'content' stands in one object twice)"),
    "an array": Case(lambda b: b.score(GOOD + b"[1]\n"), "~/in.jsonl, line 2: a JSON object is needed, not list"),
    "a bare text": Case(lambda b: b.generate(b'"w1"\n'), "~/in.jsonl, line 1: a JSON object is needed, not str"),
    "null": Case(lambda b: b.generate(b"null\n"), "~/in.jsonl, line 1: a JSON object is needed, not NoneType"),
    "two objects on one line": Case(lambda b: b.score(GOOD.strip() + GOOD), "~/in.jsonl, line 1: not JSON (… at column 39)"),
    "one object on several lines": Case(lambda b: b.score(json.dumps(json.loads(GOOD), indent=1)),
        f"~/in.jsonl: is one JSON value on several lines; {WANTED}"),
    "an object that goes on in the next line": Case(lambda b: b.score(GOOD.replace(b", ", b",\n") * 2),
        f"~/in.jsonl: is one JSON value on several lines; {WANTED}"),
    "a prompt that is a number": Case(lambda b: b.generate(lines({"prompt": 3})),
        "~/in.jsonl, line 1: field 'prompt' must be text, not int"),
    "a prompt that is null": Case(lambda b: b.generate(lines({"prompt": None})),
        "~/in.jsonl, line 1: field 'prompt' must be text, not NoneType"),
    "a response that is a list": Case(lambda b: b.score(lines({"prompt": "w1", "response": ["w2"]})),
        "~/in.jsonl, line 1: field 'response' must be text, not list"),
    "no response": Case(lambda b: b.score(lines({"prompt": "w1"})), "~/in.jsonl, line 1: no field 'response' (its fields: prompt)"),
    "NaN": Case(lambda b: b.score(b'{"prompt": "w1", "response": "w2", "weight": NaN}\n'),
        "~/in.jsonl, line 1: not usable JSON (NaN is no number of JSON's)"),
    "a number beyond all numbers": Case(lambda b: b.score(b'{"prompt": "w1", "response": "w2", "meta": [{"weight": -1e999}]}\n'),
        "~/in.jsonl, line 1: not usable JSON (-1e999 is beyond all numbers)"),
    "-Infinity": Case(lambda b: b.generate(b'{"prompt": "w1", "weight": -Infinity}\n'),
        "~/in.jsonl, line 1: not usable JSON (-Infinity is no number of JSON's)"),
    "a number of 5000 digits": Case(lambda b: b.generate(b'{"prompt": "w1", "n": ' + b"9" * 5000 + b"}"),
        "~/in.jsonl, line 1: not usable JSON (a number of thousands of digits)"),
    "nested too deeply to be written": Case(lambda b: b.score(
        GOOD + b'{"prompt": "w1", "response": "w2", "meta": ' + b'[{"a": ' * 60 + b"1" + b"}]" * 60 + b"}\n"),
        "~/in.jsonl, line 2: not usable JSON (nested too deeply)"),
    "nested without end": Case(lambda b: b.score(DEEP), "~/in.jsonl, line 1: not usable JSON (nested too deeply)"),
    "an empty file": Case(lambda b: b.generate(b""), "~/in.jsonl: no records; give one JSON object a line"),
    "blank lines alone": Case(lambda b: b.score(b"\n \r\n\t\n"), "~/in.jsonl: no records; give one JSON object a line"),
    "a byte order mark alone": Case(lambda b: b.score(b"\xef\xbb\xbf"), "~/in.jsonl: no records; give one JSON object a line"),
    "a byte order mark in the middle": Case(lambda b: b.score(GOOD + b"\xef\xbb\xbf" + GOOD),
        "~/in.jsonl, line 2: not JSON (… at column 1)"),
    "half of a surrogate pair": Case(lambda b: b.generate(b'{"prompt": "\\ud800"}\n'),
        "~/in.jsonl, line 1: field 'prompt' holds half of a surrogate pair, which is not valid Unicode"),
    "half of a surrogate pair in another field": Case(lambda b: b.generate(b'{"prompt": "w1", "id": ["\\udc00"]}\n'),
        "~/in.jsonl, line 1: one of its fields holds half of a surrogate pair, which is not valid Unicode"),
    "what marks control tokens": Case(lambda b: b.generate(lines({"prompt": "w1 \ufdd0<eos>\ufdd1"})),
        "~/in.jsonl, line 1: field 'prompt' holds U+FDD0, which Unicode keeps out of texts; take it out"),
    "a prompt beyond the context": Case(lambda b: b.generate(lines({"prompt": "w1 " * 22})),
        "~/in.jsonl, line 1: the prompt is 22 tokens; with --max_tokens=4 that is longer than the context of 24; shorten the prompt or "
        "lower --max_tokens"),
    "a record beyond the context": Case(lambda b: b.score(lines({"prompt": "w1 " * 22, "response": "w2 " * 9})),
        "~/in.jsonl, line 1: prompt and response are 31 tokens, longer than the context of 24; shorten the record"),
    "a token without an embedding": Case(lambda b: b.score(
        GOOD + lines({"prompt": "w1", "response": "w2 <tag>"}), model=b.edit(b.model() / "tokenizer.json", another_token)),
        "~/in.jsonl, line 2: has the token '<tag>' (id …), for which the weights, of … embeddings, have none; take it out or remove the "
        "record"),
    "messages without a template": Case(lambda b: b.generate(lines({"messages": [{"role": "user", "content": "w1"}]})),
        "~/in.jsonl, line 1: field 'messages' needs a chat template, and the tokenizer has none; give prompt and response"),
    "a role that is a control token": Case(lambda b:
        b.generate(lines({"messages": [{"role": "eos", "content": "w1"}]}), model=b.talker()),
        "~/in.jsonl, line 1: role 'eos' is no speaker's: give one word, and none that names a control token"),
    "a role that holds a control token": Case(lambda b: b.generate(
        lines({"messages": [{"role": "user><eos", "content": "w1"}]}), model=b.talker()),
        "~/in.jsonl, line 1: role 'user><eos' is no speaker's: give one word, and none that names a control token"),
    "a turn that is no object": Case(lambda b: b.generate(lines({"messages": ["w1"]}), model=b.talker()),
        "~/in.jsonl, line 1: turn 1 of field 'messages' must be {role, content}, both text; calls of tools and contents in parts are "
        "not read"),
    "a turn in parts": Case(lambda b: b.generate(
        lines({"messages": [{"role": "user", "content": [{"type": "text", "text": "w1"}]}]}), model=b.talker()),
        "~/in.jsonl, line 1: turn 1 of field 'messages' must be {role, content}, both text; calls of tools and contents in parts are "
        "not read"),
    "messages without a turn": Case(lambda b: b.score(lines({"messages": []}), model=b.talker()),
        "~/in.jsonl, line 1: field 'messages' must be a list of {role, content} with a turn that is not the assistant's before the answer"),
    "messages without an answer": Case(lambda b: b.score(lines({"messages": [{"role": "user", "content": "w1"}]}), model=b.talker()),
        "~/in.jsonl, line 1: field 'messages' must be a list of {role, content} of two or more turns, the last one the assistant's, or "
        "stand beside a field 'response'"),
    "a prompt that contradicts the messages": Case(lambda b: b.generate(
        lines({"prompt": "w2", "messages": [{"role": "user", "content": "w1"}]}), model=b.talker()),
        "~/in.jsonl, line 1: field 'prompt' is another text than each turn of field 'messages' before the answer; take one out"),
    "a response that contradicts the messages": Case(lambda b: b.score(
        lines({"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}], "response": "w3"})),
        "~/in.jsonl, line 1: field 'response' is another text than the answer that field 'messages' ends with; take one out"),
    "messages with two answers": Case(lambda b: b.generate(
        lines({"messages": [{"role": role, "content": "w1"} for role in ("user", "assistant", "assistant")]}), model=b.talker()),
        "~/in.jsonl, line 1: field 'messages' ends with two turns of the assistant's; make them one, or take the last one out"),
    "messages with tools": Case(lambda b: b.generate(
        lines({"messages": [{"role": "user", "content": "w1"}], "tools": [{}]}), model=b.talker()),
        "~/in.jsonl, line 1: field 'tools' is not read; leave it out, or give prompt and response as the template renders them, whose "
        "control tokens are read with data.control_tokens or --control_tokens"),
    "a template that is no template": Case(lambda b: b.generate(
        lines({"messages": [{"role": "user", "content": "w1"}]}), model=b.edit(
            b.model() / "tokenizer_config.json", lambda c: c.update(chat_template="{% for %}"))),
        "~/in.jsonl, line 1: the tokenizer's chat template refuses the conversation (…)"),
    "a template that reaches for Python": Case(lambda b: b.generate(
        lines({"messages": [{"role": "user", "content": "w1"}]}), model=b.edit(b.model() / "tokenizer_config.json", lambda c: c.update(
            chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}"))),
        "~/in.jsonl, line 1: the tokenizer's chat template refuses the conversation (…)"),
    "a terminal's commands in a name": Case(lambda b: b.generate(lines({"\x1b[2J\x07\u202e": 1})),
        "~/in.jsonl, line 1: no field 'prompt' (its fields: \\x1b[2J\\x07\\u202e)"),
    "a folder for the records": Case(lambda b: ["score", f"--model={b.base}", f"--data={b.path}", f"--out={b / 'o'}"],
        f"--data=~: is a folder; {WANTED}"),
    "a folder of `datasets`": Case(lambda b: ["score", f"--model={b.base}", f"--data={b.write('d/train/state.json', '{}').parent.parent}",
                                              f"--out={b / 'o'}"], f"--data=~/d: is a folder of the library `datasets`; {WANTED}"),
    "a loop of links for the records": Case(lambda b:
        ["score", f"--model={b.base}", f"--data={link(b, 'in', 'in')}", f"--out={b / 'o'}"], "--data=~/in: is no file that can be read"),
    "a link to nothing": Case(lambda b: ["generate", f"--model={b.base}", f"--prompts={link(b, 'in', 'none')}", f"--out={b / 'o'}"],
        "--prompts=~/in: is no file that can be read"),
}  # fmt: skip

DATA = {  # the same readers in `run`, and what only it reads
    "run: gzip cut short": Case(lambda b: b.run(data__source=gzip.compress(GOOD * 2000, mtime=0)[:-20]),
        "~/data__source.jsonl: the gzip file is truncated or damaged (…); fetch it again"),
    "run: a key twice": Case(lambda b: b.run(data__source=GOOD * 9 + b'{"prompt": "a", "response": "b", "response": "c"}\n'),
        "~/data__source.jsonl, line 10: not usable JSON (the key 'response' stands in one object twice)"),
    "run: a loop of links": Case(lambda b: b.run(f"data.source={link(b, 'in', 'in')}"), "~/in: is no file that can be read"),
    "run: a folder": Case(lambda b: b.run(f"data.source={b.path}"), f"~: is a folder; {WANTED}"),
    "run: a prepared folder": Case(lambda b: b.run(f"data.source={b.write('p/1.0.0/features.json', '{}').parent.parent}"),
        "~/p: is a prepared TFDS builder; name it as tfds:NAME, with data.tfds_data_dir"),
    "run: a response that is empty": Case(lambda b: b.run(data__source=RIGHT + lines({"prompt": "w1", "response": " \u2003\n"})),
        "~/data__source.jsonl, line 41: field 'response' is empty; give it some text or remove the record"),
    "run: an empty file": Case(lambda b: b.run(data__source=b""),
        "~/data__source.jsonl: no record in it can be used; give a file with records"),
    "run: one record": Case(lambda b: b.run(data__source=GOOD),
        "~/data__source.jsonl: all of its 1 records have one prompt, and training and evaluation share no prompt; give records of other "
        "prompts too, or name a file of evaluation records on other prompts in data.eval_source"),
    "run: one prompt, whatever is held out": Case(lambda b: b.run("data.heldout_fraction=0", data__source=b"".join(
        lines({"prompt": "", "response": f"w{i}"}) for i in range(5))),
        "~/data__source.jsonl: all of its 5 records have one prompt, and training and evaluation share no prompt; give records of other "
        "prompts too, or name a file of evaluation records on other prompts in data.eval_source"),
    "run: evaluation on every prompt": Case(lambda b: b.run(data__source=GOOD, data__eval_source=GOOD),
        "~/data__source.jsonl: no record is left for training: each of its 1 prompts is in data.eval_source = ~/data__eval_source.jsonl "
        "too, and training leaves those out; give records of other prompts in one of the two"),
    "run: one training prompt for a reward": Case(lambda b: b.run(stages="pretrain,sft,sample,reward", data__source=GOOD,
        data__eval_source=lines({"prompt": "w3", "response": "w2"})),
        "config.data: one distinct prompt is left for training, and the stage reward (recipe init_sft) holds one out and needs two; give "
        "records of more prompts, or run other stages alone by --stages"),
    "run: one prompt sampled for the rewards": Case(lambda b: b.run("sample.reward_prompts=1", "reward.recipes=()", "policy.recipes=()",
        stages="pretrain,sft,sample,evaluate", data__source=RIGHT),
        "config.sample.reward_prompts = 1, and the stage evaluate (recipe init_sft) holds one out and needs two; raise it, or run other "
        "stages alone by --stages"),
    "run: a prompt too long": Case(lambda b: b.run(data__source=RIGHT + lines({"prompt": "w1 " * 20, "response": "w2"})),
        "record …: the prompt has 20 tokens, the limit is 12; raise data.max_prompt_tokens, or cut prompts with data.truncate_prompts"),
    "run: a rating that is text": Case(lambda b: b.run(
        "data.kind=continuations", "data.min_rating=5", "data.prompt_words=1,2", data__source=many(rating="9")),
        "~/data__source.jsonl, line 40: field 'rating' must be a number, not str"),
    "run: a rating of 400 digits": Case(lambda b: b.run(
        "data.kind=continuations", "data.min_rating=5", "data.prompt_words=1,2", data__source=many(rating=10**400)),
        "~/data__source.jsonl, line 40: field 'rating' must be a finite number"),
    "run: a rating beyond all numbers": Case(lambda b: b.run("data.kind=continuations", "data.min_rating=5", "data.prompt_words=1,2",
                                                             data__source=many().replace(b'"rating": 9}', b'"rating": 1e999}')),
        "~/data__source.jsonl, line 10: not usable JSON (1e999 is beyond all numbers)"),
    "run: a pair without its other side": Case(lambda b: b.run(
        data__source=RIGHT, data__preference_source=lines({"prompt": "w1", "chosen": "w2"})),
        "~/data__preference_source.jsonl, line 1: no field 'rejected' (its fields: chosen, prompt); see data.fields"),
    "run: no file of prompts": Case(lambda b: b.run(f"data.prompts_source={b / 'p.jsonl'}", data__source=RIGHT),
        "~/p.jsonl: no such file"),
    "run: a file of prompts without one": Case(lambda b: b.run(data__source=RIGHT, data__prompts_source=b""),
        "~/data__prompts_source.jsonl: no record in it can be used; give a file with records"),
    "run: prompts without their field": Case(lambda b: b.run(data__source=RIGHT, data__prompts_source=GOOD + lines({"text": "w1"})),
        "~/data__prompts_source.jsonl, line 2: no field 'prompt' (its fields: text); see data.fields"),
    "run: a further prompt too long": Case(lambda b: b.run(data__source=RIGHT, data__prompts_source=lines({"prompt": "w1 " * 20})),
        "record 0 (prompt …): the prompt has 20 tokens, the limit is 12; raise data.max_prompt_tokens, or cut prompts with "
        "data.truncate_prompts"),
    "run: the testbed for prompts": Case(lambda b: b.run("data.prompts_source=testbed", data__source=RIGHT),
        "config.data.prompts_source: 'testbed' is a data.source only; name a file of records"),
    "run: further prompts where data are streamed": Case(lambda b: b.run(
        "data.source=tfds:x", "data.streaming=true", f"data.prompts_source={b.write('p.jsonl', GOOD)}"),
        "config.data.prompts_source: data.streaming holds data.streaming_records prompts in memory already; raise that for more, or leave "
        "prompts_source empty"),
    "run: one demonstrated prompt for a reward": Case(lambda b: b.run("reward.recipes=init_demo", "policy.recipes=()",
        stages="pretrain,sft,sample,reward", data__source=GOOD, data__eval_source=lines({"prompt": "w3", "response": "w2"}),
        data__prompts_source=RIGHT),
        "config.data: one distinct prompt is left for training, and the stage reward (recipe init_demo) holds one out and needs two; give "
        "records of more prompts, or run other stages alone by --stages"),
    "run: a transcript that is none": Case(lambda b:
        b.run(f"data.source=hh:{b.write('h.jsonl', lines({'chosen': 'a', 'rejected': 'b'}))}"),
        "~/h.jsonl, line 1: field 'chosen' has no '\\n\\nAssistant:' in it; HH-RLHF transcripts do"),
    "run: TFDS that is not prepared": Case(lambda b: b.run("data.source=tfds:../../etc", f"data.tfds_data_dir={b.path}"),
        "tfds:../../etc, split 'train': not found prepared as array_record in ~ (…); prepare it with tfds.builder('../../etc', "
        "file_format='array_record').download_and_prepare(), or see data.tfds_data_dir"),
    "run: TFDS with a feature of a foreign module": Case(lambda b: b.run(
        "data.source=tfds:x", f"data.tfds_data_dir={b.prepared('data.evil.Text')}"),
        "tfds:x in ~: its features.json names the class 'data.evil.Text', which is none of TFDS's own features and is not imported; "
        "prepare it again with features of tfds.features"),
    "run: the testbed for evaluation": Case(lambda b: b.run("data.eval_source=testbed", data__source=RIGHT),
        "config.data.eval_source: 'testbed' is a data.source only; name a file of records"),
    "run: a judge's record without its rating": Case(lambda b: b.run(
        "golden.kind=classifier", f"golden.source={b.write('g.jsonl', lines({'text': 'w1', 'rating': 9}, {'text': 'w2'}))}", data__source=RIGHT),
        "~/g.jsonl, line 2: no field 'rating' (its fields: text); see golden.text_field and golden.rating_field"),
    "run: a judge's ratings of one side": Case(lambda b: b.run(
        "golden.kind=classifier", f"golden.source={b.write('g.jsonl', lines({'text': 'w1', 'rating': 9}))}", data__source=RIGHT),
        "golden.source: ~/g.jsonl: the 1 ratings are of the same side (golden.positive_rating = 7); a classifier needs records on both sides"),
    "run: a judge's file that is broken": Case(lambda b: b.run(
        "golden.kind=classifier", f"golden.source={b.path}", data__source=RIGHT),
        "config.golden.source: ~: no such file, or none that can be read"),
}  # fmt: skip

MODELS = {
    "a model of 2e9 layers": Case(lambda b: b.score(model=b.edit(b.model() / "config.json", lambda c: c.update(n_layer=2 * 10**9))),
        "~/m/config.json: n_layer = 2000000000: must be at most 1,024"),
    "a vocabulary of 2e9 tokens": Case(lambda b: b.score(
        model=b.edit(b.model() / "config.json", lambda c: c.update(vocab_size=2 * 10**9))),
        "~/m: tensor transformer.wte.weight has shape (…), the config asks for (2000000000, …)"),
    "weights as a pickle": Case(lambda b:
        b.score(model=replaced(without(b.model(), "model.safetensors"), "pytorch_model.bin", pickled(b))),
        "~/m: has neither model.safetensors nor model.safetensors.index.json; other formats must be converted to safetensors first"),
    "a pickle named safetensors": Case(lambda b: b.generate(model=replaced(b.model(), "model.safetensors", pickled(b))),
        "~/m/model.safetensors: truncated or not a safetensors file (…); fetch it again"),
    "safetensors cut short": Case(lambda b: b.score(model=replaced(
        b.model(), "model.safetensors", (b.base / "model.safetensors").read_bytes()[:-100])),
        "~/m/model.safetensors: truncated or not a safetensors file (…); fetch it again"),
    "safetensors with a header without end": Case(lambda b: b.score(model=replaced(
        b.model(), "model.safetensors", struct.pack("<Q", 2**63) + b"{}")),
        "~/m/model.safetensors: truncated or not a safetensors file (…); fetch it again"),
    "safetensors with offsets outside": Case(lambda b: b.score(model=replaced(b.model(), "model.safetensors", safetensors(
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,1600]}}', b"\0" * 16))),
        "~/m/model.safetensors: truncated or not a safetensors file (…); fetch it again"),
    "safetensors of a dtype that is none": Case(lambda b: b.score(model=replaced(b.model(), "model.safetensors", safetensors(
        b'{"a":{"dtype":"PICKLE","shape":[4],"data_offsets":[0,16]}}', b"\0" * 16))),
        "~/m/model.safetensors: truncated or not a safetensors file (…); fetch it again"),
    "an empty weight file": Case(lambda b: b.generate(model=replaced(b.model(), "model.safetensors", b"")),
        "~/m/model.safetensors: truncated or not a safetensors file (…); fetch it again"),
    "an index that leads out of the folder": Case(lambda b: b.score(model=replaced(
        without(b.model(), "model.safetensors"), "model.safetensors.index.json", '{"weight_map": {"a": "../m/model.safetensors"}}')),
        "~/m/model.safetensors.index.json: weight_map names '../m/model.safetensors', which is no file of this folder"),
    "an index with a path from the root": Case(lambda b: b.score(model=replaced(
        without(b.model(), "model.safetensors"), "model.safetensors.index.json", '{"weight_map": {"a": "/etc/passwd"}}')),
        "~/m/model.safetensors.index.json: weight_map names '/etc/passwd', which is no file of this folder"),
    "a config nested without end": Case(lambda b: b.score(model=replaced(b.model(), "config.json", b'{"a":' * 100_000)),
        "~/m/config.json: not usable JSON (nested too deeply, or a number of thousands of digits)"),
    "a config of 5000 digits": Case(lambda b: b.score(model=replaced(b.model(), "config.json", b'{"n_embd": ' + b"9" * 5000 + b"}")),
        "~/m/config.json: not usable JSON (nested too deeply, or a number of thousands of digits)"),
    "a config that is no UTF-8": Case(lambda b: b.generate(model=replaced(b.model(), "config.json", b'{"\xff": 1}')),
        "~/m/config.json: not valid JSON (…)"),
    "a config that is a loop of links": Case(lambda b: b.generate(model=link(
        Box(without(b.model(), "config.json"), b.base, b.finished), "config.json", "config.json").parent),
        "~/m/config.json: cannot be read (…)"),
    "a tokenizer that is no JSON": Case(lambda b: b.score(model=replaced(b.model(), "tokenizer.json", '{"version": ')),
        "~/m: no tokenizer that transformers can read (…)"),
    "a tokenizer of an unknown kind": Case(lambda b: b.score(model=b.edit(
        b.model() / "tokenizer.json", lambda t: t["model"].update(type="Pickle"))), "~/m: no tokenizer that transformers can read (…)"),
    "a tokenizer that is no tokenizer": Case(lambda b: b.score(model=b.edit(
        b.model() / "tokenizer_config.json", lambda c: c.update(tokenizer_class="AutoModelForCausalLM"))),
        "~/m: no tokenizer that transformers can read (tokenizer_class names 'AutoModelForCausalLM', which is no tokenizer)"),
    "no tokenizer": Case(lambda b: b.score(model=without(b.model(), "tokenizer.json")),
        "~/m: no tokenizer; one of tokenizer.json, tokenizer.model, vocab.json, vocab.txt must be there"),
    "a model that is a file": Case(lambda b: b.score(model=b.write("m", "x")), "~/m: no such model folder"),
    "a model that is a loop of links": Case(lambda b: b.score(model=link(b, "m", "m")), "~/m: no such model folder"),
    "a reward model that is none": Case(lambda b: b.run(f"reward.start={b.base}", data__source=RIGHT),
        "config.reward.start: @/config.json: architectures says GPT2LMHeadModel, a reward model is a *ForSequenceClassification"),
    "a judge's model without its folder": Case(lambda b: b.run(
        "golden.kind=hf_reward", f"golden.model={b / 'none'}", data__source=RIGHT), "config.golden.model: ~/none: no such model folder"),
}  # fmt: skip
