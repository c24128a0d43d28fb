"""Sources: what is read, what is split where, and one clear line for what cannot be read."""

import gzip
import json

import pytest

from irl_jax import config
from irl_jax.data import sources
from irl_jax.data.sources import HH_MARK, PairRecord, Record, load_corpus
from irl_jax.errors import UserError


def data_config(**settings):
    data = config.default().data
    data.update(settings)
    return data


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def pair_records(number, per_prompt=1):
    return [{"prompt": f"p{i}", "response": f" r{i}.{j}"} for i in range(number) for j in range(per_prompt)]


def test_pairs_split_by_prompt_losing_nothing(tmp_path):
    path = write(tmp_path / "d.jsonl", pair_records(40, per_prompt=2))
    corpus = load_corpus(data_config(source=path, heldout_fraction=0.25, development_fraction=0.1), seed=3)
    splits = [{r.prompt for r in split} for split in (corpus.train, corpus.development, corpus.evaluation)]
    assert [len(s) for s in splits] == [26, 4, 10]
    assert not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]
    everything = corpus.train + corpus.development + corpus.evaluation
    assert sorted(everything) == sorted(Record(f"p{i}", f" r{i}.{j}") for i in range(40) for j in range(2))
    assert corpus.pairs == [] and dict(corpus.counts) == {}


def test_split_depends_on_the_seed_and_on_nothing_else(tmp_path):
    path = write(tmp_path / "d.jsonl", pair_records(40))
    data = data_config(source=path)
    assert load_corpus(data, 0) == load_corpus(data, 0)
    assert load_corpus(data, 0).evaluation != load_corpus(data, 1).evaluation


def test_caps(tmp_path):
    path = write(tmp_path / "d.jsonl", pair_records(40))
    whole = load_corpus(data_config(source=path), 0)
    capped = load_corpus(data_config(source=path, max_demonstrations=5), 0)
    assert capped.train == whole.train[:5] and capped.evaluation == whole.evaluation
    few = load_corpus(data_config(source=path, max_records=10), 0)
    assert {r.prompt for r in few.train + few.development + few.evaluation} == {f"p{i}" for i in range(10)}


def test_gzip_is_told_by_its_content(tmp_path):
    plain = write(tmp_path / "d.jsonl", pair_records(20))
    packed = tmp_path / "no_suffix"
    packed.write_bytes(gzip.compress((tmp_path / "d.jsonl").read_bytes()))
    misnamed = tmp_path / "plain.jsonl.gz"
    misnamed.write_bytes((tmp_path / "d.jsonl").read_bytes())
    expected = load_corpus(data_config(source=plain), 0)
    assert load_corpus(data_config(source=str(packed)), 0) == expected
    assert load_corpus(data_config(source=str(misnamed)), 0) == expected


def test_field_names_come_from_the_config(tmp_path):
    path = write(tmp_path / "d.jsonl", [{"q": f"p{i}", "a": "r"} for i in range(20)])
    data = data_config(source=path)
    data.fields.prompt, data.fields.response = "q", "a"
    assert load_corpus(data, 0).train[0].response == "r"


def test_evaluation_source_keeps_its_prompts_to_itself(tmp_path):
    path = write(tmp_path / "d.jsonl", pair_records(20))
    other = write(tmp_path / "e.jsonl", [{"prompt": "p3", "response": "x"}, {"prompt": "new", "response": "y"}])
    corpus = load_corpus(data_config(source=path, eval_source=other), 0)
    assert corpus.evaluation == [Record("p3", "x"), Record("new", "y")]
    assert "p3" not in {r.prompt for r in corpus.train + corpus.development}
    assert len(corpus.train) + len(corpus.development) == 19
    assert corpus.counts == {"overlap_with_evaluation": 1}


def review(i):
    return {"text": "  ".join(f"w{i}.{j}" for j in range(6 + i % 5)) + "\nend.", "rating": 1 + i % 10}


def test_continuations_join_to_the_original_and_imitate_only_the_well_rated(tmp_path):
    reviews = [review(i) for i in range(60)]
    path = write(tmp_path / "r.jsonl", reviews)
    data = data_config(source=path, kind="continuations", min_rating=7, prompt_words=(2, 4), heldout_fraction=0.3)
    corpus = load_corpus(data, 0)
    rating = {review["text"]: review["rating"] for review in reviews}
    everything = corpus.train + corpus.development + corpus.evaluation
    assert all(r.prompt + r.response in rating and r.response.startswith("  ") for r in everything)
    assert {len(r.prompt.split()) for r in everything} == {2, 3, 4}
    assert {rating[r.prompt + r.response] for r in corpus.train} == {7, 8, 9, 10}
    assert {rating[r.prompt + r.response] for r in corpus.evaluation} & set(range(1, 7))
    heldout = {r.prompt for r in corpus.development + corpus.evaluation}
    assert not heldout & {r.prompt for r in corpus.train}
    assert len(corpus.evaluation) == 18 and load_corpus(data, 0) == corpus


def test_short_texts_are_left_out_and_counted(tmp_path):
    path = write(tmp_path / "r.jsonl", [{"text": "one"}, {"text": "one two  "}] + [{"text": "a b c d"}] * 3 + [review(1)])
    corpus = load_corpus(data_config(source=path, kind="continuations", prompt_words=(2, 2), development_fraction=0.0), 0)
    assert corpus.counts == {"short": 2} and sources.left_out(corpus.counts) == "left out: 2 short"
    assert {r for split in corpus[:3] for r in split} >= {Record("a b", " c d")}


@pytest.mark.parametrize("count", [2, 3, 4])
def test_few_prompts_leave_one_for_training(tmp_path, count):
    """Evaluation has at least one, training too; development gives way."""
    path = write(tmp_path / "d.jsonl", pair_records(count))
    for heldout in (0.1, 0.9):
        corpus = load_corpus(data_config(source=path, heldout_fraction=heldout, development_fraction=0.9), 0)
        assert corpus.train and corpus.evaluation and len(corpus.train) + len(corpus.development) + len(corpus.evaluation) == count
    other = write(tmp_path / "e.jsonl", [{"prompt": "new", "response": "y"}])
    alone = write(tmp_path / "one.jsonl", [{"prompt": "", "response": "y"}] * 3)
    assert [len(part) for part in load_corpus(data_config(source=alone, eval_source=other), 0)[:3]] == [3, 0, 1]
    if count > 2:
        assert len(load_corpus(data_config(source=path, heldout_fraction=0.1, development_fraction=0.9), 0).train) == 2


def test_no_evaluation_record_names_the_key(tmp_path):
    path = write(tmp_path / "d.jsonl", pair_records(20))
    with pytest.raises(UserError, match="data.heldout_fraction = 0: no record is left for evaluation.*data.eval_source"):
        load_corpus(data_config(source=path, heldout_fraction=0.0), 0)
    other = write(tmp_path / "e.jsonl", [{"prompt": "new", "response": "y"}])
    assert load_corpus(data_config(source=path, heldout_fraction=0.0, eval_source=other), 0).evaluation == [Record("new", "y")]
    assert sources.left_out({"short": 2, "empty": 0, "overlap_with_evaluation": 1}) == "left out: 2 short, 1 overlap_with_evaluation"
    assert sources.left_out({}) == ""


def transcript(head, reply):
    return f"\n\nHuman: {head}{HH_MARK} sure\n\nHuman: more{HH_MARK}{reply}"


def hh_records(number):
    return [{"chosen": transcript(i, f" good {i}"), "rejected": transcript(i, f" bad {i}")} for i in range(number)]


def test_hh_transcripts(tmp_path):
    sides = [(transcript("a", " x"), transcript("b", " y")), (transcript("c", ""), transcript("c", " y"))]
    odd = [{"chosen": chosen, "rejected": rejected} for chosen, rejected in sides]
    path = write(tmp_path / "h.jsonl", odd + hh_records(20))
    corpus = load_corpus(data_config(source=f"hh:{path}"), 0)
    assert dict(corpus.counts) == {"prompt_not_shared": 1, "empty": 1, "pairs_off_training": 3}
    everything = corpus.train + corpus.development + corpus.evaluation
    assert Record(transcript(7, ""), " good 7") in everything and len(everything) == 20
    assert sorted(pair.prompt for pair in corpus.pairs) == sorted(r.prompt for r in corpus.train)
    assert all(pair.chosen.replace("good", "bad") == pair.rejected for pair in corpus.pairs)


def test_preference_source_and_pairs_within_the_source(tmp_path):
    path = write(tmp_path / "d.jsonl", pair_records(20))
    labelled = [{"prompt": f"p{i}", "chosen": f" c{i}", "rejected": f" r{i}"} for i in range(21)]
    preferences = write(tmp_path / "p.jsonl", labelled)
    corpus = load_corpus(data_config(source=path, preference_source=preferences), 0)
    elsewhere = {r.prompt for r in corpus.development + corpus.evaluation}
    assert corpus.pairs == [PairRecord(*r.values()) for r in labelled if r["prompt"] not in elsewhere]
    assert corpus.counts == {"pairs_off_training": 3} and len(corpus.pairs) == 18
    own = load_corpus(data_config(source=preferences), 0)
    assert {(r.prompt, r.response) for r in own.train} == {(p.prompt, p.chosen) for p in own.pairs}


def test_messages_are_rendered_or_refused(tmp_path):
    turns = lambda i, last: [{"role": "user", "content": f"q{i}"}, {"role": last, "content": "a"}]
    path = write(tmp_path / "m.jsonl", [{"messages": turns(i, "assistant")} for i in range(20)])
    corpus = load_corpus(data_config(source=path), 0, render=lambda m: (m[0]["content"] + "|", m[1]["content"]))
    assert corpus.train[0].prompt.endswith("|") and corpus.train[0].response == "a"
    with pytest.raises(UserError, match="line 1: field 'messages' needs a chat template"):
        load_corpus(data_config(source=path), 0)
    wrong = write(tmp_path / "w.jsonl", [{"messages": turns(0, "user")}])
    with pytest.raises(UserError, match="line 1: field 'messages' must be a list"):
        load_corpus(data_config(source=wrong), 0, render=lambda m: ("", ""))


GOOD = b'{"prompt": "p", "response": "r"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + b'{"prompt": "p", \n', r"d\.jsonl, line 2: not JSON"),
        (GOOD + b"[1]\n", r"d\.jsonl, line 2: a JSON object is needed, not list"),
        (GOOD + b'\n{"prompt": "p"}\n', r"d\.jsonl, line 3: no field 'response' \(its fields: prompt\)"),
        (b'{"response": "r"}', r"d\.jsonl, line 1: no field 'prompt'"),
        (b'{"prompt": "p", "response": 3}', r"d\.jsonl, line 1: field 'response' must be text, not int"),
        (b'{"prompt": "p", "response": " \\n"}', r"d\.jsonl, line 1: field 'response' is empty"),
        (b'{"prompt": "\\ud800", "response": "r"}', r"line 1: field 'prompt' holds half of a surrogate pair"),
        (b'{"prompt": "\xff"}', r"line 1: byte 12 is not UTF-8"),
        (b'{"prompt": ' + b"[" * 100000, r"line 1: not usable JSON"),
        (b'{"prompt": ' + b"1" * 5000 + b"}", r"line 1: not usable JSON"),
        (b"", r"d\.jsonl: no record in it can be used"),
        (gzip.compress(GOOD * 2000, mtime=0)[:-20], r"d\.jsonl: the gzip file is truncated or damaged"),
        (gzip.compress(GOOD, mtime=0)[:15] + b"\x00" * 30, r"d\.jsonl: the gzip file is truncated or damaged"),
        (GOOD, r"all of its 1 records have one prompt"),
        (GOOD * 5, r"all of its 5 records have one prompt"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path, content, message):
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_corpus(data_config(source=str(path)), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("record", "settings", "message"),
    [
        ({"text": "a b c", "rating": "7"}, {"min_rating": 5}, "line 1: field 'rating' must be a number, not str"),
        ({"text": "a b c", "rating": True}, {"min_rating": 5}, "line 1: field 'rating' must be a number, not bool"),
        ({"text": "a b c"}, {"min_rating": 5}, "line 1: no field 'rating'"),
        ({"text": ["a"]}, {}, "line 1: field 'text' must be text, not list"),
        ({"text": "a b c"}, {"prompt_words": (3, 2)}, "data.prompt_words = "),
        ({"text": "a b c"}, {"kind": "pair"}, "data.kind = 'pair'"),
        ({"text": "a b c"}, {"heldout_fraction": 1.0}, "data.heldout_fraction = 1.0"),
        ({"text": "a"}, {}, r"can be used \(left out: 1 short\)"),
    ],
)
def test_bad_continuations(tmp_path, record, settings, message):
    path = write(tmp_path / "d.jsonl", [record])
    with pytest.raises(UserError, match=message):
        load_corpus(data_config(**{"source": path, "kind": "continuations", "prompt_words": (1, 1), **settings}), 0)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere.jsonl: no such file"):
        load_corpus(data_config(source=str(tmp_path / "nowhere.jsonl")), 0)
    with pytest.raises(UserError, match="is a folder; JSON lines are needed"):
        load_corpus(data_config(source=str(tmp_path)), 0)
    with pytest.raises(UserError, match="line 1: field 'chosen' has no"):
        load_corpus(data_config(source="hh:" + write(tmp_path / "h.jsonl", [{"chosen": "a", "rejected": "b"}])), 0)


@pytest.fixture(scope="module")
def prepared_tfds(tmp_path_factory):
    tfds = pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed: the 'tfds' extra brings it")

    class TinyReviews(tfds.core.GeneratorBasedBuilder):
        """Made-up reviews."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, download_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(30):
                yield i, {"text": f"café {i} was fine", "label": i % 2}

    folder = str(tmp_path_factory.mktemp("tfds"))
    TinyReviews(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_tfds(prepared_tfds):
    data = data_config(source="tfds:tiny_reviews", tfds_data_dir=prepared_tfds, kind="continuations", prompt_words=(2, 2))
    data.fields.rating, data.min_rating = "label", 1.0
    corpus = load_corpus(data, 0)
    everything = corpus.train + corpus.development + corpus.evaluation
    assert all(r.prompt.startswith("café ") and r.response == " was fine" for r in everything)
    assert len(corpus.evaluation) == 3 and {int(r.prompt.split()[1]) % 2 for r in corpus.train} == {1}
    data.tfds_split = "nosplit"
    with pytest.raises(UserError, match="tfds:tiny_reviews, split 'nosplit': not found"):
        load_corpus(data, 0)


@pytest.mark.parametrize("name", ["imdb_reviews", "no_such_builder"])
def test_tfds_not_prepared_is_one_line(prepared_tfds, tmp_path, name):
    data = data_config(source=f"tfds:{name}", tfds_data_dir=str(tmp_path))
    with pytest.raises(UserError, match=f"tfds:{name}, split 'train': not found prepared as array_record") as caught:
        load_corpus(data, 0)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.shared
def test_hh_as_published(shared):
    corpus = load_corpus(data_config(source=f"hh:{shared}/data/hh/harmless-base.test.jsonl.gz"), 0)
    assert corpus.counts["prompt_not_shared"] == 5 and corpus.counts["empty"] == 4
    assert len(corpus.train) + len(corpus.development) + len(corpus.evaluation) == 2312 - 9
    assert all(pair.prompt.endswith(HH_MARK) and pair.chosen.strip() for pair in corpus.pairs)


@pytest.mark.shared
def test_imdb(shared):
    data = data_config(source=f"{shared}/data/imdb/train.jsonl.gz", kind="continuations", min_rating=7, max_records=2000)
    corpus = load_corpus(data, 0)
    assert 700 < len(corpus.train) < 1000 and len(corpus.evaluation) == 200
    assert all(8 <= len(r.prompt.split()) <= 16 for r in corpus.train)


def test_module_reads_lines_lazily(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(GOOD + b"broken\n")
    assert [record for _, record in sources.read_jsonl(str(path), max_records=1)] == [{"prompt": "p", "response": "r"}]


# ---------------------------------------------------------------- prompts without responses


def prompts_of(*parts):
    return [{record.prompt for record in part} for part in parts]


def test_more_prompts_are_split_and_those_of_the_source_stay_where_they_are(tmp_path):
    path = write(tmp_path / "d.jsonl", pair_records(40))
    asked = [{"prompt": f"p{i}"} for i in range(40)] + [{"prompt": f"q{i}", "response": ""} for i in range(50)] * 2
    more = write(tmp_path / "p.jsonl", asked)
    data = data_config(source=path, heldout_fraction=0.2)
    plain, corpus = load_corpus(data, 0), load_corpus(data_config(source=path, heldout_fraction=0.2, prompts_source=more), 0)
    assert (corpus.train, corpus.development, corpus.pairs) == (plain.train, plain.development, plain.pairs) and plain.prompts == ()
    assert corpus.evaluation[:8] == plain.evaluation and [record.response for record in corpus.evaluation[8:]] == [""] * 10
    splits = [*prompts_of(corpus.train, corpus.development, corpus.evaluation), set(corpus.prompts)]
    assert len(corpus.prompts) == len(set(corpus.prompts)) == 40 and sum(map(len, splits)) == len(set().union(*splits)) == 90
    assert load_corpus(data_config(source=path, heldout_fraction=0.2, prompts_source=more), 0) == corpus
    assert set(load_corpus(data_config(source=path, heldout_fraction=0.2, prompts_source=more), 1).prompts) != set(corpus.prompts)


def test_more_prompts_are_for_training_where_evaluation_has_a_source(tmp_path):
    path = write(tmp_path / "d.jsonl", pair_records(20))
    other = write(tmp_path / "e.jsonl", [{"prompt": "new", "response": "y"}])
    more = write(tmp_path / "p.jsonl", [{"prompt": "new"}, *({"prompt": f"q{i}"} for i in range(9))])
    corpus = load_corpus(data_config(source=path, eval_source=other, prompts_source=more), 0)
    assert corpus.evaluation == [Record("new", "y")] and set(corpus.prompts) == {f"q{i}" for i in range(9)}


def test_a_prompt_with_a_pair_is_not_held_out(tmp_path):
    path = write(tmp_path / "d.jsonl", pair_records(20))
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(20)])
    more = write(tmp_path / "p.jsonl", [{"prompt": f"q{i}"} for i in range(22)])
    corpus = load_corpus(data_config(source=path, heldout_fraction=0.9, preference_source=pairs, prompts_source=more), 0)
    assert {f"q{i}" for i in range(20)} < set(corpus.prompts) and len(corpus.prompts) == 21


def test_prompts_of_every_format(tmp_path):
    """Conversations (an answer is passed over), transcripts and the first words of texts: as the source's own records have them."""
    turns = [{"role": "user", "content": "hi"}]

    def render(messages, sampled=False):
        *asked, last = messages
        return ("u:hi a:", last["content"]) if last["role"] == "assistant" else ("u:hi a:", "")

    path = write(tmp_path / "d.jsonl", pair_records(20))
    for messages in (turns, [*turns, {"role": "assistant", "content": "yes"}], [*turns, {"role": "assistant", "content": ""}]):
        more = write(tmp_path / "m.jsonl", [{"messages": messages}])
        corpus = load_corpus(data_config(source=path, prompts_source=more), 0, render)
        assert corpus.prompts == ["u:hi a:"] and corpus.turns == {"u:hi a:": turns}
    more = write(tmp_path / "h.jsonl", [{"chosen": transcript("x", " yes")}, {"chosen": transcript("y", "")}])
    corpus = load_corpus(data_config(source=path, heldout_fraction=0.1, prompts_source=f"hh:{more}"), 0)
    assert {*corpus.prompts, corpus.evaluation[-1].prompt} == {transcript("x", ""), transcript("y", "")}
    reviews = write(tmp_path / "r.jsonl", [review(i) for i in range(60)])
    settings = {"kind": "continuations", "prompt_words": (2, 4), "min_rating": 7, "heldout_fraction": 0.3}
    plain = load_corpus(data_config(source=reviews, **settings), 0)
    same = load_corpus(data_config(source=reviews, **settings, prompts_source=reviews), 0)
    used = set().union(*prompts_of(*plain[:3]))
    assert not used & set(same.prompts) and len(used | set(same.prompts) | prompts_of(same.evaluation)[0]) == 60  # the badly rated
    unrated = write(tmp_path / "t.jsonl", [{"text": "a b c d"}, {"text": "one"}])
    corpus = load_corpus(data_config(source=reviews, **settings, prompts_source=unrated), 0)
    assert len(corpus.prompts) == 1 and "a b c d".startswith(corpus.prompts[0]) and corpus.counts == {"short": 1}
