"""Real text for the evidence: ParaDetox and HH as files, what golden and the baselines say of them, and the configs of configs/paper/."""

import importlib.util
import json
import math
import pathlib
import re

import numpy as np
import pytest
from tiny import tiny_config

from benchmarks.evidence import hh, paradetox
from irl_jax import artifacts, cli, hf, stages
from irl_jax import config as config_lib
from irl_jax.checks import check
from irl_jax.errors import UserError
from irl_jax.evaluation import golden, preservation
from irl_jax.models import transformer
from irl_jax.stages import context as contexts
from irl_jax.stages import recipe_data

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAPER = ("imdb", "paradetox", "hh")


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines()]


# ---- ParaDetox ----


@pytest.mark.parametrize("raw, expected", [
    ("He 's an IDIOT , really !", "he's an idiot, really!"),
    ("don 't do it , we ca n't", "don't do it, we can't"),
    ("It’s “fine”  here .", 'it\'s "fine" here.'),
    ("they 'll say i 'm \n here", "they'll say i'm here"),
    ("the dogs ' dinner", "the dogs ' dinner"),
])
def test_both_sides_are_written_one_way(raw, expected):
    assert paradetox.written(raw) == expected == paradetox.written(expected)


def tsv_of(path, rows=200):
    """Rows in the manner of ParaDetox, a rude word in each toxic sentence."""
    nouns, rude = ["film", "plot", "actor", "song", "house", "river", "summer"], ["damned", "stupid", "crappy"]
    lines = ["toxic\tneutral1\tneutral2\tneutral3"]
    for i in range(rows):
        thing = f"{nouns[i % 7]} number {i}"
        lines.append(f"that {rude[i % 3]} {thing} is n't here .\tThat {thing} isn't here.\tNo {thing} here\t")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_sentences_are_read_once_and_only_where_something_changed(tmp_path):
    path = tmp_path / "p.tsv"
    path.write_text("toxic\tneutral1\tneutral2\tneutral3\n"
                    "you fool .\tYou fool!\tYou are wrong .\t\n"  # the first rewrite changes marks alone
                    "You fool\tthe same sentence\t\t\n"
                    "what a mess .\tWhat a mess.\t\t\n"  # nothing changed
                    'no bum\t"a ""quoted""\nreply"\t\t\n')  # a reply of two lines
    found = paradetox.read(path)
    assert found == [("you fool.", "you are wrong."), ("no bum", 'a "quoted" reply')]
    path.write_text("a\tb\n1\t2\n")
    with pytest.raises(UserError, match="no columns 'toxic'"):
        paradetox.read(path)
    with pytest.raises(UserError, match="nowhere.tsv: cannot be read"):
        paradetox.read(tmp_path / "nowhere.tsv")


def test_preparing_is_deterministic_and_the_judges_sentences_are_its_own(tmp_path):
    tsv = tsv_of(tmp_path / "p.tsv")
    with tsv.open("a") as file:  # two sentences with one rewrite: on whichever side they fall, the judge must not have what is shown
        file.writelines(f"you {rude}\tyou person\t\t\n" for rude in ("fool", "idiot", "moron", "cretin", "oaf", "clown"))
    names = paradetox.prepare(tmp_path / "a", tsv), paradetox.prepare(tmp_path / "b", tsv)
    one, two = ({key: pathlib.Path(path) for key, path in name.items()} for name in names)
    assert all(one[key].read_bytes() == two[key].read_bytes() for key in one)
    assert set(one) == {"data.source", "data.preference_source", "golden.source"}
    demos, pairs, judged = (lines_of(one[key]) for key in ("data.source", "data.preference_source", "golden.source"))
    shown = {text.strip() for pair in pairs for text in (pair["chosen"], pair["rejected"])}
    assert not shown & {row["text"] for row in judged} and {row["rating"] for row in judged} == {0, 1}
    assert [(row["prompt"], row["response"]) for row in demos] == [(row["prompt"], row["chosen"]) for row in pairs]
    assert all(row["prompt"] == row["rejected"].strip() + " =>" and row["chosen"].startswith(" ") for row in pairs)
    assert len({row["prompt"] for row in demos}) == len(demos)
    assert 0.2 < len(judged) / 2 / (len(judged) / 2 + len(demos)) < 0.4


def test_the_scale_of_golden(tmp_path, capsys):
    """A good rewrite is above a copy, which keeps everything, and above a polite sentence about something else."""
    tsv = tsv_of(tmp_path / "p.tsv", 400)
    assert paradetox.main([f"--tsv={tsv}", f"--out={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr().out
    values = {name.strip(): float(value) for name, value in re.findall(r"^  (.*): ([0-9.]+)$", said, re.M)}
    assert values["human rewrite"] > 0.6 and values["human rewrite"] > 2 * values["verbatim copy"]
    assert values["human rewrite"] > values["rewrite of another sentence"]
    assert f"--config.golden.source={tmp_path / 'out' / 'data' / 'golden.jsonl'}" in said
    with pytest.raises(SystemExit) as stopped:
        paradetox.main([f"--tsv={tmp_path / 'none.tsv'}", f"--out={tmp_path / 'out'}"])
    assert stopped.value.code == 2


# ---- content kept ----

CORPUS = ["the film was bad", "the plot was good", "the actor left the film", "a river"]


def by_hand(one: str, other: str) -> float:
    """The formula of `fit_similarity`, in plain Python."""
    def words(text):
        return re.findall(r"\w[\w']*", text.lower())

    def letters(text):
        found = []
        for word in words(text):
            padded = f" {word} "
            for n in (2, 3, 4):
                found += [padded[i : i + n] for i in range(max(1, len(padded) - n + 1))]
                if len(padded) <= n:  # a short word's last n-gram is all of it, once
                    break
        return found

    def cosine(parts):
        frequency = {}
        for text in CORPUS:
            for feature in set(parts(text)):
                frequency[feature] = frequency.get(feature, 0) + 1

        def vector(text):
            counts = {}
            for feature in parts(text):
                counts[feature] = counts.get(feature, 0) + 1
            weighed = {f: (1 + math.log(n)) * (math.log((1 + len(CORPUS)) / (1 + frequency.get(f, 0))) + 1) for f, n in counts.items()}
            size = math.sqrt(sum(w * w for w in weighed.values()))
            return {f: w / size for f, w in weighed.items()} if size else {}

        a, b = vector(one), vector(other)
        return sum(weight * b.get(feature, 0) for feature, weight in a.items())

    return (cosine(words) + cosine(letters)) / 2


def test_the_similarity_is_its_formula():
    similarity = preservation.fit_similarity(CORPUS)
    pairs = [("the film was bad =>", "a good film"), ("the river, the river", "River films"), ("zanzibar is far", "far zanzibar"),
             ("the plot was good", "the plot was bad")]
    found = similarity(*map(list, zip(*pairs, strict=True)))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [by_hand(*pair) for pair in pairs], atol=1e-6)


def test_copies_are_one_and_what_shares_nothing_is_none():
    similarity = preservation.fit_similarity(CORPUS)
    texts = ["he is an idiot =>", "The film, was BAD!", "zanzibar"]
    np.testing.assert_allclose(similarity(texts, ["He is an idiot.", "the film was bad", "zanzibar"]), 1.0, atol=1e-9)
    np.testing.assert_array_equal(similarity(["the film =>", "", "=>", "the film"], ["zzz", "the film", "", "..."]), 0.0)


def test_a_content_word_counts_more_than_a_common_one():
    similarity = preservation.fit_similarity(CORPUS * 10)
    kept_content, kept_common = similarity(["the zanzibar"] * 2, ["zanzibar", "the"])
    assert kept_content > kept_common + 0.3
    stem, other = similarity(["films"] * 2, ["film", "river"])
    assert stem > 0.15 and other < 0.05


def rewriting_config(folder, **keys):
    config = config_lib.default()
    config.golden.update(kind="classifier", positive_rating=1.0, preserves="prompt", source=str(folder / "golden.jsonl"), **keys)
    return config


def test_golden_is_the_product(tmp_path):
    rows = [{"text": f"{word} thing {i}", "rating": rating} for i in range(60) for word, rating in (("damned", 0), ("nice", 1))]
    (tmp_path / "golden.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = rewriting_config(tmp_path)
    prompts, responses = ["damned house =>"] * 4, ["nice house", "damned house", "nice river", ""]
    both = golden.make_judge(config, directory=tmp_path)
    assert both.unit == "probability of positive x content kept" and both.heldout_accuracy == 1.0
    config.golden.preserves = ""
    alone = golden.make_judge(config, directory=tmp_path)
    similarity = preservation.fit_similarity([row["text"] for row in rows])
    found = both.score(prompts, responses)
    np.testing.assert_allclose(found, alone.score(prompts, responses) * similarity(prompts, responses), atol=1e-12)
    assert found[0] > found[1] and found[0] > found[2] and found[3] == 0.0


def test_preserving_without_a_classifier_is_refused(tmp_path):
    config = tiny_config(golden__preserves="prompt")
    with pytest.raises(UserError, match="config.golden.preserves: only golden.kind = 'classifier'"):
        check(config)
    config = tiny_config(golden__preserves="response")
    with pytest.raises(UserError, match="config.golden.preserves = 'response': must be one of '', prompt"):
        check(config)


# ---- HH ----


def transcripts(path, count=160):
    """Pairs in which the chosen reply is longer and apologises, some conversations at two lengths."""
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    lines = []
    for i in range(count // 2):
        opening = f"\n\nHuman: {' '.join(rng.choice(letters, 3))} {i}\n\nAssistant:"
        for prompt in (opening, opening + " a b\n\nHuman: c\n\nAssistant:"):
            longer, shorter = (" " + " ".join(rng.choice(letters[:-1], size)) for size in (6, 3))
            lines.append({"chosen": prompt + longer + " z", "rejected": prompt + shorter})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def letters_model(path):
    """A GPT-2 folder of a few hundred parameters whose words are single letters."""
    import jax
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<eos>", "<pad>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    model = transformer.ModelConfig(vocab_size=len(words), num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_width=32,
                                    max_positions=64)
    hf.save_folder(path, model, transformer.init_trunk(jax.random.key(0), model), tokenizer)
    return str(path)


def hh_config(tmp_path, **changes):
    names = hh.prepare(tmp_path / "hh", transcripts(tmp_path / "t.jsonl"))
    keys = {key.replace(".", "__"): value for key, value in names.items()}
    return tiny_config(model__path=letters_model(tmp_path / "model"), golden__kind="none", data__max_prompt_tokens=24,
                       data__max_response_tokens=12, data__truncate_prompts=True, reward__heldout_fraction=0.5, sft__steps=2,
                       policy__recipes=(), reward__recipes=("init_sft", "preference"), reward__controls=("log_ratio", "length"),
                       **keys, **changes)


def test_a_conversation_is_on_one_side(tmp_path):
    source = transcripts(tmp_path / "t.jsonl")
    names = hh.prepare(tmp_path / "a", source), hh.prepare(tmp_path / "b", source)
    assert all(pathlib.Path(names[0][key]).read_bytes() == pathlib.Path(names[1][key]).read_bytes() for key in names[0])
    demos, pairs = (lines_of(names[0][key]) for key in ("data.source", "data.preference_source"))
    openings = [{row["prompt"].split("\n\nAssistant:")[0] for row in rows} for rows in (demos, pairs)]
    assert len(demos) + len(pairs) == 160 and len(demos) > 20 < len(pairs) and not openings[0] & openings[1]
    assert all(row["chosen"].endswith(" z") and not row["rejected"].endswith(" z") for row in pairs)
    with pytest.raises(UserError, match="no such file"):
        hh.prepare(tmp_path / "c", tmp_path / "nowhere.jsonl")


def test_baselines_of_a_config(tmp_path):
    """Longer replies with a tell-tale word are right every time; where neither says anything, it shows too."""
    config = hh_config(tmp_path)
    found = hh.baselines(config)
    held = recipe_data.data_of(contexts.Context(config, None), "preference")[2]
    assert found["pairs"] == len(held[0]) > 10 and found["rewards"] == {}
    assert found["length"] == {"accuracy": 1.0, "stderr": 0.0, "prefers": "longer"} and found["bag_of_words"]["accuracy"] > 0.8
    assert found["chance"] == {"accuracy": 0.5, "stderr": pytest.approx(0.5 / math.sqrt(len(held[0])))}
    pairs = pathlib.Path(config.data.preference_source)
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in lines_of(pairs)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in swapped))
    assert hh.baselines(config)["length"] == {"accuracy": 1.0, "stderr": 0.0, "prefers": "shorter"}
    rng = np.random.default_rng(0)
    noise = [{**row, **{side: " " + " ".join(rng.choice(list("abcdefgh"), 5)) for side in ("chosen", "rejected")}} for row in swapped]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in noise))
    found = hh.baselines(config)
    assert found["length"]["accuracy"] == 0.5  # all as long
    assert abs(found["bag_of_words"]["accuracy"] - 0.5) < 3.5 * found["chance"]["stderr"]
    pairs.write_text(json.dumps(noise[0]) + "\n")
    with pytest.raises(UserError, match="'preference' needs pairs"):
        hh.baselines(config)


def test_the_bag_of_words_learns_from_the_training_pairs_alone():
    """Held-out texts of words that no training text has score nothing, whatever tells them apart."""
    training = (["good day"] * 8, ["bad day"] * 8)
    scores, penalty = hh._bag_of_words(training, training, (["new word", "good"], ["other word", "bad"]))
    assert scores[0][0] == scores[1][0] == 0 and scores[0][1] > 0 > scores[1][1] and penalty == max(hh.PENALTIES)
    apart = (["bad day"] * 4 + ["good day"] * 4, ["good day"] * 4 + ["bad day"] * 4)
    assert hh._bag_of_words(training, apart, training)[1] == min(hh.PENALTIES)  # half of them swapped: the surest is the worst


def test_differences_are_on_the_same_pairs():
    chosen, rejected = np.array([1.0, 0.0, 1.0, 2.0]), np.array([0.0, 1.0, 0.0, 2.0])  # right, wrong, right, tied
    others = np.array([1.0, 1.0, 0.0, 1.0]), np.zeros(4)  # right, right, tied, right
    found = hh._less("length", (chosen, rejected), others)
    differences = np.array([0.0, -1.0, 0.5, -0.5])
    assert found == {"less_length": pytest.approx(differences.mean()),
                     "less_length_stderr": pytest.approx(differences.std(ddof=1) / 2)}


def test_baselines_of_a_run_agree_with_its_results(tmp_path):
    config = hh_config(tmp_path)
    stages.run_pipeline(config, tmp_path / "w")
    found, results = hh.baselines(tmp_path / "w"), artifacts.read_json(tmp_path / "w" / "results.json")
    assert set(found["rewards"]) == {"init_sft", "preference", "log_ratio"}
    for name, row in found["rewards"].items():
        assert row["accuracy"] == pytest.approx(results["rewards"][name]["pair_accuracy"], abs=1e-12)
        assert row["less_length"] == pytest.approx(row["accuracy"] - found["length"]["accuracy"], abs=1e-12)
    assert found["length"]["accuracy"] == results["rewards"]["length"]["pair_accuracy"] == 1.0


def test_commands(tmp_path, capsys):
    assert hh.main(["prepare", f"--transcripts={transcripts(tmp_path / 't.jsonl')}", f"--out={tmp_path / 'o'}"]) == 0
    assert f"--config.data.source={tmp_path / 'o' / 'data' / 'demonstrations.jsonl'}" in capsys.readouterr().out
    for arguments in (["prepare", "--transcripts=nowhere", f"--out={tmp_path}"], ["baselines", str(tmp_path)]):
        with pytest.raises(SystemExit) as stopped:
            hh.main(arguments)
        assert stopped.value.code == 2 and "error:" in capsys.readouterr().err


# ---- the configs ----


def prepared(name, out, shared):
    """The overrides that the config's own data need."""
    if name == "paradetox":
        return paradetox.prepare(out, shared / "data" / "paradetox" / "paradetox.tsv")
    return hh.prepare(out, shared / "data" / "hh" / "harmless-base.test.jsonl.gz") if name == "hh" else {}


def paper_config(name, variant, out, shared):
    config = cli.load_config(f"{ROOT / 'configs' / 'paper' / name}.py{variant and ':' + variant}")
    config.update_from_flattened_dict(prepared(name, out, shared))
    return config


@pytest.mark.shared
@pytest.mark.parametrize("name", PAPER)
def test_the_configs_pass_the_check(name, tmp_path, shared, monkeypatch):
    monkeypatch.setenv("IRL_JAX_SHARED", str(shared))
    for variant in ("", "smoke", *(("top_p", "top_p_smoke") if name != "hh" else ())):
        check(paper_config(name, variant, tmp_path, shared))


@pytest.mark.parametrize("name", PAPER)
def test_the_files_are_looked_for_where_they_are_made(name):
    config = cli.load_config(f"{ROOT / 'configs' / 'paper' / name}.py")
    module = {"paradetox": paradetox, "hh": hh}.get(name)
    if module:
        folder = pathlib.Path("runs", "paper", name, "data")
        assert pathlib.Path(config.data.source).parent == pathlib.Path(config.data.preference_source).parent == folder
        assert f"--out={folder.parent}" in (ROOT / "configs" / "paper" / f"{name}.py").read_text()


def test_the_paths_of_a_spec():  # configs/paper/imdb.py starts from configs/imdb.py whatever the folder it is called from
    spec = importlib.util.spec_from_file_location("paper_imdb", ROOT / "configs" / "paper" / "imdb.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config, plain = module.get_config(), cli.load_config(str(ROOT / "configs" / "imdb.py"))
    assert config.data.to_dict() == plain.data.to_dict() and config.sft.to_dict() == plain.sft.to_dict()
    assert max(config.eval.best_of) == config.sample.eval_samples == 64
