"""`score` and `generate` against transformers, on the small real models and real text."""

import gzip
import json

import jax
import numpy as np
import pytest

from irl_jax import cli, hf
from irl_jax.models import transformer

pytestmark = [pytest.mark.shared, pytest.mark.slow]
TEXTS, TOKENS = 200, 24


@pytest.fixture(scope="module", params=["imdb-gpt2-6m", "stories260k"])
def model(request, shared):
    """(folder, tokenizer, records): openings of film reviews and the words that follow, not cut within a token."""
    from transformers import AutoTokenizer

    folder, records = shared / "models" / request.param, []
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with gzip.open(shared / "data" / "imdb" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        for index, line in enumerate(file):
            words = json.loads(line)["text"].split()[: 8 + index % 7 + 20]
            prompt, response = " ".join(words[: 8 + index % 7]), " " + " ".join(words[8 + index % 7 :])
            first, joined = tokenizer(prompt)["input_ids"], tokenizer(prompt + response)["input_ids"]
            if joined[: len(first)] == first and len(joined) + TOKENS < 200 and response.strip():
                records.append({"prompt": prompt, "response": response})
            if len(records) == TEXTS:
                return folder, tokenizer, records


def lines_of(verb, folder, tmp_path, records, *flags):
    given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_text("".join(json.dumps(record) + "\n" for record in records))
    name = "prompts" if verb == "generate" else "data"
    assert cli.main([verb, f"--model={folder}", f"--{name}={given}", f"--out={out}", *flags]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_log_probs_within_a_thousandth_of_a_nat(model, tmp_path, torch):
    from transformers import AutoModelForCausalLM

    folder, tokenizer, records = model
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    for record in records:
        ids = torch.tensor([tokenizer(record["prompt"] + record["response"])["input_ids"]])
        start = len(tokenizer(record["prompt"])["input_ids"])
        with torch.no_grad():
            logprobs = theirs(ids).logits[0].double().log_softmax(-1)
        expected.append(logprobs[start - 1 : -1].gather(1, ids[0, start:, None]).sum().item())
    got = [line["logprob"] for line in lines_of("score", folder, tmp_path, records)]
    assert len(got) == TEXTS and np.std(expected) > 1
    np.testing.assert_allclose(got, expected, atol=1e-3, rtol=0)


def test_greedy_text_is_the_same(model, tmp_path, torch):
    from transformers import AutoModelForCausalLM

    folder, tokenizer, records = model
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = tokenizer([record["prompt"] for record in records], return_tensors="pt", padding=True, padding_side="left",
                     return_token_type_ids=False)
    out = theirs.generate(**rows, do_sample=False, max_new_tokens=TOKENS, pad_token_id=tokenizer.pad_token_id)
    whole, asked = ([tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in ids]
                    for ids in (out, rows["input_ids"]))
    expected = [text[len(prompt) :] for text, prompt in zip(whole, asked, strict=True)]  # decoded alone, SentencePiece would drop a space
    prompts = [{"prompt": record["prompt"]} for record in records]
    got = [line["response"] for line in lines_of("generate", folder, tmp_path, prompts, "--temperature=0", f"--max_tokens={TOKENS}")]
    assert len(set(got)) > TEXTS // 2
    assert got == expected


def test_bfloat16_is_near_float32(model, torch):
    """Parameters and activations in bfloat16: mean KL of the next token's law from float32 torch's, and each text's."""
    from transformers import AutoModelForCausalLM

    folder, tokenizer, records = model
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config, trunk = hf.load_folder(folder, dtype="bfloat16", param_dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trunk)} == {"bfloat16"}

    @jax.jit
    def ours(trunk, tokens):
        hidden = transformer.hidden_states(config, {"params": trunk}, tokens, np.arange(32)[None], np.ones((1, 32), np.int32))
        assert hidden.dtype.name == "bfloat16"
        return transformer.vocab_logits(config, {"params": trunk}, hidden)

    divergences = []
    for record in records:
        tokens = np.array([tokenizer(record["prompt"] + record["response"])["input_ids"][:32]])
        if tokens.shape[1] < 32:
            continue
        with torch.no_grad():
            expected = theirs(torch.tensor(tokens)).logits.double().log_softmax(-1)
        got = torch.tensor(np.asarray(ours(trunk, tokens))).double().log_softmax(-1)
        divergences.append((expected.exp() * (expected - got)).sum(-1).mean().item())
    assert len(divergences) > 100 and 1e-5 < np.mean(divergences) < 1.5e-3 and max(divergences) < 3e-3
