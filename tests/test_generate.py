"""The verbs `generate` and `score` through the command line: on Hugging Face folders, and on runs of them."""

import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from tokenizers import AddedToken

from irl_jax import cli, hf, workdir
from irl_jax.config import default
from irl_jax.errors import UserError
from irl_jax.models import transformer
from irl_jax.models.transformer import ModelConfig
from irl_jax.stages.context import Context

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball."
)


def write(path, *records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def called(verb, source, folder, records, *flags):
    """The records that a verb writes for `records`; `source` is --model=... or --workdir=..."""
    given, out = write(folder / "in.jsonl", *records), folder / "out.jsonl"
    flag = "--prompts" if verb == "generate" else "--data"
    assert cli.main([verb, source, f"{flag}={given}", f"--out={out}", *flags]) == 0
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def refused(capsys, out, *arguments) -> str:
    """The one line on stderr of a call that must fail with status 2 and leave no output."""
    assert cli.main([*arguments, f"--out={out}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("irl_jax: error: ")
    assert not out.exists() and not (out.parent.exists() and list(out.parent.glob(".*.tmp")))
    return err


def prompts_of(*texts):
    return [{"prompt": text} for text in texts]


def prompts_and_responses(lines):
    return [{key: line[key] for key in ("prompt", "response")} for line in lines]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A saved folder of a random GPT-2 with 13 words and a context of 24 tokens."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<unk>", "<pad>", "<eos>"] + [f"w{i}" for i in range(10)]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>")  # fmt: skip
    config = ModelConfig(
        vocab_size=13, num_layers=2, width=8, num_heads=2, num_kv_heads=2, head_dim=4, mlp_width=12, max_positions=24)  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: transformer.init_trunk(jax.random.key(0), config))
    trunk = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    return hf.save_folder(tmp_path_factory.mktemp("model") / "tiny", config, trunk, tokenizer)


def run_of(folder, model, **changes):
    """The workdir of a run that has trained nothing."""
    config = default()
    config.data.source, config.model.path = "file", str(model)
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    with workdir.Workdir(folder, ConfigDict(config)):
        return folder


# ---------------------------------------------------------------- a tiny folder


def test_generate_then_score_up_to_the_context(tiny, tmp_path):
    prompts = prompts_of("w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w1 w2")
    lines = called("generate", f"--model={tiny}", tmp_path, prompts, "--samples=8", "--max_tokens=17", "--seed=1")
    assert len(lines) == 24 and [line["prompt"] for line in lines[::8]] == [record["prompt"] for record in prompts]
    assert set(lines[0]) == {"prompt", "response", "logprob", "tokens", "ended"}
    assert len({line["response"] for line in lines[:8]}) > 1
    # a text cannot hold the special tokens that this random model draws on its way
    whole = [line for line in lines if len(line["response"].split()) == line["tokens"] - line["ended"] and line["response"]]
    for ended, flags in ((False, ()), (True, ("--eos",))):
        mine = [line for line in whole if line["ended"] == ended]
        assert mine
        scored = called("score", f"--model={tiny}", tmp_path, prompts_and_responses(mine), *flags)
        assert [line["tokens"] for line in scored] == [line["tokens"] for line in mine]
        np.testing.assert_allclose([line["logprob"] for line in scored], [line["logprob"] for line in mine], atol=1e-3)


def test_a_full_context_is_scored_and_one_token_more_is_not(tiny, tmp_path, capsys):
    good, long = ({"prompt": "w1 w2 w3 w4", "response": " w5" * n} for n in (20, 21))
    (line,) = called("score", f"--model={tiny}", tmp_path, [good])
    assert line["tokens"] == 20 and np.isfinite(line["logprob"])
    data = write(tmp_path / "long.jsonl", good, "", long)
    err = refused(capsys, tmp_path / "o.jsonl", "score", f"--model={tiny}", f"--data={data}")
    assert "long.jsonl, line 3: prompt and response are 25 tokens, longer than the context of 24" in err
    data = write(tmp_path / "full.jsonl", good)
    assert "full.jsonl, line 1: " in refused(capsys, tmp_path / "o.jsonl", "score", f"--model={tiny}", f"--data={data}", "--eos")


def test_prompts_are_refused_beyond_the_context(tiny, tmp_path, capsys):
    assert called("generate", f"--model={tiny}", tmp_path, prompts_of("w1 " * 20), "--max_tokens=4")
    prompts = write(tmp_path / "p.jsonl", *prompts_of("w1", "w1 " * 21))
    err = refused(capsys, tmp_path / "o.jsonl", "generate", f"--model={tiny}", f"--prompts={prompts}", "--max_tokens=4")
    assert "p.jsonl, line 2: the prompt is 21 tokens" in err and "context of 24" in err


@pytest.mark.parametrize(
    "verb, record, words",
    [
        ("generate", '{"prompt": ', "line 2: not JSON"),
        ("generate", {"text": "w1"}, "line 2: no field 'prompt' (its fields: text)"),
        ("generate", {"prompt": 3}, "line 2: field 'prompt' must be text"),
        ("score", "[1]", "line 2: a JSON object is needed"),
        ("score", {"prompt": "w1"}, "line 2: no field 'response' (its fields: prompt)"),
        ("score", {"prompt": "w1", "response": None}, "line 2: field 'response' must be text, not NoneType"),
    ],
)
def test_broken_records(tiny, tmp_path, capsys, verb, record, words):
    data = write(tmp_path / "in.jsonl", {"prompt": "w1", "response": "w2"}, record)
    flag = "--prompts" if verb == "generate" else "--data"
    assert f"in.jsonl, {words}" in refused(capsys, tmp_path / "o.jsonl", verb, f"--model={tiny}", f"{flag}={data}")


def test_an_answer_that_ended_at_once(tiny, tmp_path):
    """EOS is an action: one token with --eos, none without; the other records are scored as if alone."""
    records = [{"prompt": "w1 w2", "response": ""}, {"prompt": "w1", "response": " w3"}]
    for eos, flags in ((1, ("--eos",)), (0, ())):
        empty, other = called("score", f"--model={tiny}", tmp_path, records, *flags)
        assert (empty["tokens"], other["tokens"]) == (eos, 1 + eos) and (empty["logprob"] < 0) == bool(eos)
        assert called("score", f"--model={tiny}", tmp_path, records[1:], *flags) == [other]


def test_texts_that_spell_control_tokens_are_counted(tiny, tmp_path, capsys):
    records = [{"prompt": "w1", "response": "w2 <eos>"}, {"prompt": "<eos> w1", "response": "w2"}, {"prompt": "w1", "response": "w2"}]
    said = "{} of 3 records spell control tokens, which are read as text; if a template has rendered them, give --control_tokens\n"
    called("score", f"--model={tiny}", tmp_path, records)
    assert capsys.readouterr().out == said.format(2)
    called("generate", f"--model={tiny}", tmp_path, records, "--max_tokens=2")
    assert capsys.readouterr().out == said.format(1)
    called("score", f"--model={tiny}", tmp_path, records, "--control_tokens")
    called("score", f"--model={tiny}", tmp_path, records[2:])
    assert capsys.readouterr().out == ""


def test_only_records_that_use_a_token_without_an_embedding_are_refused(tiny, tmp_path, capsys):
    folder = shutil.copytree(tiny, tmp_path / "m")
    tokenizer = hf.load_tokenizer(folder)
    tokenizer.add_tokens([AddedToken("<image>", special=True), AddedToken("<tag>", special=False)])
    tokenizer.save_pretrained(folder)
    good = {"prompt": "w1 <image>", "response": "w2"}
    assert called("score", f"--model={folder}", tmp_path, [good]) and called("generate", f"--model={folder}", tmp_path, [good], "--max_tokens=2")
    capsys.readouterr()
    line = "in.jsonl, line 2: has the token '{}' (id {}), for which the weights, of 13 embeddings, have none; take it out or remove the record"
    for record, token, *flags in ((good, "<image>", "--control_tokens"), ({"prompt": "w1", "response": "w2 <tag>"}, "<tag>"),
                                  ({"prompt": "<tag>", "response": "w2"}, "<tag>")):
        data = write(tmp_path / "in.jsonl", {"prompt": "w1", "response": "w2"}, record)
        err = refused(capsys, tmp_path / "o.jsonl", "score", f"--model={folder}", f"--data={data}", *flags)
        assert line.format(token, {"<image>": 13, "<tag>": 14}[token]) in err
        if token in record["prompt"]:
            err = refused(capsys, tmp_path / "o.jsonl", "generate", f"--model={folder}", f"--prompts={data}", "--max_tokens=2", *flags)
            assert "in.jsonl, line 2: has the token" in err


def test_a_run_counts_and_refuses_alike(tiny, tmp_path, capsys):
    folder = shutil.copytree(tiny, tmp_path / "m")
    tokenizer = hf.load_tokenizer(folder)
    tokenizer.add_tokens([AddedToken("<tag>", special=False)])
    tokenizer.save_pretrained(folder)
    config = default()
    config.model.path, config.data.heldout_fraction, config.data.development_fraction = str(folder), 0.1, 0.0
    config.data.max_prompt_tokens, config.data.max_response_tokens = 12, 12
    rendered = [{"prompt": f"w{i} <eos>", "response": "w1<eos>"} for i in range(10)]
    config.data.source = str(write(tmp_path / "d.jsonl", *rendered))
    assert Context(config, None).demonstrations
    said = capsys.readouterr().out
    assert "demonstrations: 9 records, 9 spell control tokens, which are read as text (see data.control_tokens)\n" in said
    config.data.control_tokens = True
    assert Context(config, None).demonstrations and "demonstrations: 9 records\n" in capsys.readouterr().out
    config.data.preference_source = str(write(tmp_path / "p.jsonl", *({"prompt": f"x{i}", "chosen": "w1", "rejected": "<tag>"} for i in "12")))
    with pytest.raises(UserError, match=r"record 0 \(prompt 'x1'\): has the token '<tag>' \(id 13\)"):
        assert Context(config, None).pairs
    config.data.source = str(write(tmp_path / "d.jsonl", *rendered, *({"prompt": f"w{i} w1", "response": "<tag>"} for i in range(30))))
    with pytest.raises(UserError, match=r"has the token '<tag>' \(id 13\), for which the weights, of 13 embeddings, have none"):
        assert Context(config, None).demonstrations


def test_missing_files(tiny, tmp_path, capsys):
    data, out = write(tmp_path / "in.jsonl", {"prompt": "w1", "response": "w2"}), tmp_path / "o.jsonl"
    assert "no such file" in refused(capsys, out, "score", f"--model={tiny}", f"--data={tmp_path / 'none.jsonl'}")
    assert "no such model folder" in refused(capsys, out, "score", f"--model={tmp_path / 'none'}", f"--data={data}")
    assert "not a workdir" in refused(capsys, out, "score", f"--workdir={tmp_path / 'none'}", f"--data={data}")
    err = refused(capsys, tmp_path / "none" / "o.jsonl", "score", f"--model={tiny}", f"--data={data}")
    assert "folder that exists" in err and not (tmp_path / "none").exists()
    empty = write(tmp_path / "empty.jsonl")
    assert "empty.jsonl: no records" in refused(capsys, out, "generate", f"--model={tiny}", f"--prompts={empty}")


def test_a_run_is_scored_on_the_devices_that_are_here(tiny, tmp_path):
    records = [{"prompt": "w1 w2", "response": " w3" * 10}]
    (alone,) = called("score", f"--model={tiny}", tmp_path, records)
    run = run_of(tmp_path / "w", tiny, mesh__data=7, mesh__fsdp=4, data__max_prompt_tokens=1, data__max_response_tokens=1)
    (line,) = called("score", f"--workdir={run}", tmp_path, records, "--role=init")
    assert line == alone


def test_mistakes_on_a_run(tiny, tmp_path, capsys):
    data, out = write(tmp_path / "in.jsonl", {"prompt": "w1", "response": "w2"}), tmp_path / "o.jsonl"
    score = ["score", f"--workdir={run_of(tmp_path / 'w', tiny, policy__recipes=())}", f"--data={data}"]
    assert "has trained no policy" in refused(capsys, out, *score, "--role=policy")
    assert "unknown role 'policy/x'; one of init, sft" in refused(capsys, out, *score, "--role=policy/x")
    assert "unknown reward 'x'" in refused(capsys, out, *score, "--reward=x")
    assert "nothing is trained under 'sft' yet" in refused(capsys, out, *score)
    moved = run_of(tmp_path / "moved", "../none/model")
    err = refused(capsys, out, "score", f"--workdir={moved}", f"--data={data}")
    assert "model.path = '../none/model'" in err and "relative path" in err and "no such model folder" in err


# ---------------------------------------------------------------- real folders


@pytest.mark.shared
def test_greedy_story(shared, tmp_path):
    stories = f"--model={shared / 'models' / 'stories260k'}"
    prompts = prompts_of("Once upon a time", "Once upon a time, there", "Lily and Tom went to the park. They", "")
    flags = ("--temperature=0", "--max_tokens=48")
    lines = called("generate", stories, tmp_path, prompts, *flags)
    assert all((line["prompt"] + line["response"]).startswith(STORY) for line in lines[:2])
    assert lines[1]["response"].startswith(" was")  # the space that a SentencePiece decoder would drop
    scored = called("score", stories, tmp_path, prompts_and_responses(lines))
    for mine, theirs in zip(lines, scored, strict=True):
        assert set(theirs) == {"prompt", "response", "logprob", "tokens"} and not mine["ended"]
        assert (theirs["tokens"], theirs["logprob"]) == (48, pytest.approx(mine["logprob"], abs=1e-3))
    # the other prompts of the file, longer ones among them, and further samples change nothing
    alone = called("generate", stories, tmp_path, prompts[:1], *flags, "--samples=2")
    assert len(alone) == 2
    for line in alone:
        assert line.pop("logprob") == pytest.approx(lines[0]["logprob"], abs=1e-3)
        assert line.items() <= lines[0].items()


@pytest.mark.shared
def test_logprobs_are_those_of_torch(shared, torch, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared / "models" / "imdb-gpt2-6m"
    records = [
        {"prompt": "This movie was", "response": " a complete waste of time, and the acting is terrible."},
        {"prompt": "I have seen this film", "response": " three times."},
        {"prompt": "The director", "response": " of this picture knows what a thriller needs: pace.\n\nNot so the writer. " * 6},
    ]
    scored = {eos: called("score", f"--model={folder}", tmp_path, records, *flags) for eos, flags in ((0, ()), (1, ("--eos",)))}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for i, record in enumerate(records):
        start, ids = len(tokenizer(record["prompt"])["input_ids"]), tokenizer(record["prompt"] + record["response"])["input_ids"]
        ids = torch.tensor([[*ids, tokenizer.eos_token_id]])
        with torch.no_grad():
            whole = model(ids).logits[0, :-1].double().log_softmax(-1)
        each = whole.gather(-1, ids[0, 1:, None])[start - 1 :, 0]
        for eos in (0, 1):
            kept = each if eos else each[:-1]
            assert scored[eos][i]["tokens"] == len(kept)
            assert scored[eos][i]["logprob"] == pytest.approx(float(kept.sum()), abs=1e-3)


def test_an_end_of_turn_that_is_not_special_is_in_no_text(tiny, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(tiny, folder)
    tokenizer = hf.load_tokenizer(folder)
    tokenizer.add_tokens([AddedToken("<|end|>", special=False, normalized=False)])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ' ' + m.content + '<|end|>' }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    config = default()
    config.data.source, config.model.path, config.adapter.rank = "file", str(folder), 0
    context = Context(config, None)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert end in context.eos_ids and context.text([*tokenizer("w1 w2")["input_ids"], end]) == "w1 w2"
