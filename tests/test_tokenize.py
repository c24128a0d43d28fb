"""The token rule: prefix, straddled boundaries, BOS once, EOS ours, cuts, and errors that name the record."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from irl_jax.data import controls
from irl_jax.data.sources import PairRecord, Record
from irl_jax.data.tokenize import (
    TokenReport,
    detokenize,
    tokenize_pairs,
    tokenize_prompts,
    tokenize_records,
)
from irl_jax.errors import UserError

BOS, EOS = 0, 1
CHARACTERS = "abcdefghijklmnopqrstuvwxyz |."
LIMITS = dict(max_prompt=8, max_response=8, eos_id=EOS)


def build(template="<s> $A", chat_template=None, **specials):
    """Byte-pair encoding over single characters with one merge, "t"+"h"; the template is the tokenizer's own rule."""
    vocabulary = {"<s>": BOS, "</s>": EOS, **{c: 2 + i for i, c in enumerate(CHARACTERS)}, "th": 2 + len(CHARACTERS)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("|", "removed")  # "|" stands nowhere in the ids
    tokenizer.decoder = decoders.Fuse()
    if template:
        special = [(token, vocabulary[token]) for token in ("<s>", "</s>") if token in template]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    specials = specials or dict(bos_token="<s>", eos_token="</s>")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)
    fast.chat_template = chat_template
    return fast


def ids(text):
    """Ids of text in which t and h never meet; "_" stands for the merged "th"."""
    return [2 + len(CHARACTERS) if c == "_" else 2 + CHARACTERS.index(c) for c in text]


def one(tokenizer, prompt, response, **changes):
    (example,), report = tokenize_records(tokenizer, [Record(prompt, response)], **{**LIMITS, **changes})
    return example, report


def test_joined_text_bos_first_eos_last():
    example, report = one(build(), "the", " cat")
    assert example.prompt.tolist() == [BOS, *ids("_e")] and example.response.tolist() == [*ids(" cat"), EOS]
    assert example.ended and example.source == 0 and report == TokenReport(1, 0, 0, 0)
    assert example.prompt.dtype == example.response.dtype == np.int32


def test_straddled_boundary_is_tokenised_apart_and_counted():
    records = [Record("cat", "hat"), Record("cat", " sat"), Record("cat", "h")]
    examples, report = tokenize_records(build(), records, **LIMITS)
    assert [e.prompt.tolist() for e in examples] == [[BOS, *ids("cat")]] * 3
    assert [e.response.tolist() for e in examples] == [[*ids("hat"), EOS], [*ids(" sat"), EOS], [*ids("h"), EOS]]
    assert report == TokenReport(3, 2, 0, 0) and [e.source for e in examples] == [0, 1, 2]


@pytest.mark.parametrize("template", ["<s> $A </s>", "<s> $A"])
def test_the_tokenizers_own_eos_stands_nowhere_in_the_middle(template):
    example, _ = one(build(template), "ab", "cd")
    assert example.prompt.tolist() == [BOS, *ids("ab")] and example.response.tolist() == [*ids("cd"), EOS]
    straddled, _ = one(build(template), "at", "he")
    assert straddled.response.tolist() == [*ids("he"), EOS]


def test_bos_is_not_doubled_where_a_template_spells_it_out():
    example, _ = one(build(), controls.marked("<s>") + "ab", "c")
    assert example.prompt.tolist() == [BOS, *ids("ab")]


def test_no_bos_where_the_tokenizer_adds_none():
    example, _ = one(build(template=None), "ab", "c")
    assert example.prompt.tolist() == ids("ab")


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [(build(), BOS), (build(None), BOS), (build(None, eos_token="</s>"), EOS)],
    ids=["adds BOS", "has BOS", "has EOS only"],
)
def test_an_empty_prompt_becomes_one_token(tokenizer, expected):
    example, _ = one(tokenizer, "", "ab")
    assert example.prompt.tolist() == [expected] and example.response.tolist() == [*ids("ab"), EOS]
    assert tokenize_prompts(tokenizer, [""], max_prompt=8, eos_id=EOS)[0][0].tolist() == [expected]


def test_no_token_for_an_empty_prompt_is_an_error():
    with pytest.raises(UserError, match="neither a BOS nor an EOS"):
        one(build(None, pad_token="."), "", "ab", eos_id=None)


@pytest.mark.parametrize(("letters", "ended", "length"), [(6, True, 7), (7, True, 8), (8, False, 8), (9, False, 8)])
def test_long_responses_are_cut_without_eos(letters, ended, length):
    example, report = one(build(), "p", "abcdefghi"[:letters])
    assert len(example.response) == length and example.ended == ended == (example.response[-1] == EOS)
    assert report.truncated == (not ended)
    assert example.response[:letters].tolist() == ids("abcdefghi"[:letters])[:8]


def test_eos_is_not_doubled_and_may_be_left_out():
    assert one(build(), "p", "ab" + controls.marked("</s>"))[0].response.tolist() == [*ids("ab"), EOS]
    example, report = one(build(), "p", "ab", eos_id=None)
    assert example.response.tolist() == ids("ab") and not example.ended and report.truncated == 0


def test_long_prompts_are_refused_or_keep_their_tail():
    with pytest.raises(UserError, match=r"record 1 \(prompt 'abcdefgh'\): the prompt has 9 tokens, the limit is 8") as caught:
        tokenize_records(build(), [Record("a", "b"), Record("abcdefgh", "c")], **LIMITS)
    assert "\n" not in str(caught.value)
    example, report = one(build(), "abcdefghij", "k", truncate_prompts=True)
    assert example.prompt.tolist() == [BOS, *ids("defghij")] and example.response.tolist() == [*ids("k"), EOS]
    assert report.truncated_prompts == 1
    assert one(build(None), "abcdefghij", "k", truncate_prompts=True)[0].prompt.tolist() == ids("cdefghij")
    with pytest.raises(UserError, match="the limit is 8"):
        tokenize_prompts(build(), ["abcdefgh"], max_prompt=8, eos_id=EOS)


@pytest.mark.parametrize("response", ["", "|"])
def test_an_empty_response_names_the_record(response):
    with pytest.raises(UserError, match=r"record 1 \(prompt 'x'\): the response is empty"):
        tokenize_records(build(), [Record("a", "b"), Record("x", response)], **LIMITS)


def test_prompts_alone_have_the_ids_they_have_in_records():
    texts = ["the", "cat", "", "the"]
    examples, _ = tokenize_records(build(), [Record(t, "hat") for t in texts], **LIMITS)
    prompts, _ = tokenize_prompts(build(), texts, max_prompt=8, eos_id=EOS)
    assert [p.tolist() for p in prompts] == [e.prompt.tolist() for e in examples]
    assert tokenize_prompts(build(), [], max_prompt=8, eos_id=EOS)[0] == []


def test_pairs_share_their_prompt():
    pairs, report = tokenize_pairs(build(), [PairRecord("a", "b", "cd"), PairRecord("t", "h", "abcdefghi")], **LIMITS)
    assert [p.chosen.response.tolist() for p in pairs] == [[*ids("b"), EOS], [*ids("h"), EOS]]
    assert pairs[0].rejected.response.tolist() == [*ids("cd"), EOS] and not pairs[1].rejected.ended
    assert all(p.chosen.prompt.tolist() == p.rejected.prompt.tolist() for p in pairs)
    assert [p.rejected.source for p in pairs] == [0, 1] and report == TokenReport(4, 1, 1, 0)


def test_detokenize_leaves_specials_out():
    assert detokenize(build(), np.asarray([BOS, *ids("_e cat ."), EOS])) == "the cat ."


@pytest.mark.shared
@pytest.mark.parametrize(("model", "bos"), [("imdb-gpt2-6m", []), ("stories260k", [1])])
def test_real_tokenizers(shared, model, bos):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / model)
    records = [Record("Once upon a time", ", there was a  café.\nTwo"), Record("The mov", "ie was fine"), Record("", "Hm")]
    examples, report = tokenize_records(tokenizer, records, max_prompt=32, max_response=64, eos_id=tokenizer.eos_token_id)
    joined = tokenizer(records[0].prompt + records[0].response).input_ids
    assert [*examples[0].prompt, *examples[0].response] == [*joined, tokenizer.eos_token_id]
    assert examples[0].prompt[: len(bos)].tolist() == bos and (examples[0].response != tokenizer.bos_token_id).sum() > 5
    assert detokenize(tokenizer, examples[0].response) == records[0].response
    assert report.straddled == (model == "imdb-gpt2-6m")  # " movie" is one of its tokens
    assert len(examples[2].prompt) == 1 and all(e.ended for e in examples)
