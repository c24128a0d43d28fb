"""The world: determinism, splits, tokenizer, the exact law of the demonstrator, and what each setting does."""

import hashlib
import json
import pathlib

import numpy as np
import pytest

from irl_jax import cli, config
from irl_jax.data.testbed import build_world, grammar, vocabulary
from irl_jax.data.testbed.golden import golden_score, read_sentence, sentences
from irl_jax.data.testbed.prompts import prompt_pool, read_prompt, split_words
from irl_jax.data.testbed.world import split_prompts
from irl_jax.errors import UserError


def settings(**changes):
    t = config.default().data.testbed
    t.update({"pretrain_responses": 50, "demonstrations": 40, "pairs": 20, "eval_prompts": 16, "development_prompts": 8})
    t.update(changes)
    return t


@pytest.fixture(scope="module")
def world():
    return build_world(settings(), 0)


def some_prompts(n, seed=0, kind=None):
    pool = [p for k, ps in prompt_pool().items() if kind in (None, k) for p in ps]
    return [pool[i] for i in np.random.default_rng(seed).integers(len(pool), size=n)]


def texts(world, ids):
    return [world.tokenizer.decode(x, skip_special_tokens=True) for x in ids]


def test_same_seed_same_world_other_seed_another(world):
    again, other = build_world(settings(), 0), build_world(settings(), 1)
    assert again.corpus == world.corpus and again.pretraining == world.pretraining
    assert other.corpus.train != world.corpus.train and other.ids == world.ids
    assert build_world(settings(seed_offset=1), 0).corpus == other.corpus
    prompts = some_prompts(20)
    assert world.demonstrate(prompts, 5) == again.demonstrate(prompts, 5) != world.demonstrate(prompts, 6)


def test_sizes_of_other_splits_do_not_move_the_evaluation(world):
    assert build_world(settings(demonstrations=60, pretrain_responses=5), 0).corpus.evaluation == world.corpus.evaluation


def test_prompts_are_many_distinct_and_the_splits_disjoint(world):
    pool = [p for ps in prompt_pool().values() for p in ps]
    assert len(pool) == len(set(pool)) > 2000
    splits = [{r.prompt for r in part} for part in (world.corpus.train, world.corpus.development, world.corpus.evaluation)]
    splits.append({r.prompt for r in world.pretraining})
    assert [len(s) for s in splits[:3]] == [40, 8, 16]
    for i in range(4):
        for j in range(i):
            assert not splits[i] & splits[j]
    assert {p.prompt for p in world.corpus.pairs} <= splits[0]
    kinds = [read_prompt(r.prompt).kind for r in world.corpus.evaluation]
    assert [kinds.count(k) for k in ("request", "question", "harm")] == [8, 4, 4]


def test_more_prompts_move_nothing_else(world):
    more = build_world(settings(prompts=200), 0)
    assert more.corpus._replace(prompts=[]) == world.corpus and more.pretraining == world.pretraining
    used = {r.prompt for part in (*more.corpus[:3], more.pretraining) for r in part}
    assert len(set(more.corpus.prompts)) == 200 and not used & set(more.corpus.prompts)
    kinds = [read_prompt(prompt).kind for prompt in more.corpus.prompts]
    assert [kinds.count(k) for k in ("request", "question", "harm")] == [100, 50, 50]
    fewer = build_world(settings(prompts=100), 0).corpus.prompts
    assert set(fewer) < set(more.corpus.prompts)
    with pytest.raises(UserError, match=r"data.testbed.prompts = 20000: 5000 of them are question prompts and the world has \d+ that"):
        build_world(settings(prompts=20000), 0)


def test_every_prompt_is_read_back_as_what_it_was_made_for():
    for kind, pool in prompt_pool().items():
        for prompt in pool:
            meaning = read_prompt(prompt)
            assert meaning.kind == kind
            group = vocabulary.HARMS[meaning.group].act if kind == "harm" else (vocabulary.TOPICS[meaning.group].name,)
            assert set(group) <= set(split_words(prompt))


def test_topics_share_no_noun_and_the_dialect_is_one_to_one():
    nouns = [noun for t in vocabulary.TOPICS for noun in {n for _, n in t.steps}]
    assert len(nouns) == len(set(nouns)) == 120
    for topic in vocabulary.TOPICS:
        assert {noun for noun, _ in topic.facts} <= {noun for _, noun in topic.steps}
    assert len(vocabulary.CANONICAL) == len(vocabulary.SYNONYMS)
    assert not set(vocabulary.CANONICAL) & set(vocabulary.SYNONYMS) and len(set(vocabulary.TAIL)) == len(vocabulary.TAIL)
    plain = {w for t in vocabulary.TOPICS for pair in t.steps + t.facts for w in pair}
    plain |= {w for h in vocabulary.HARMS for part in h[1:] for pair in part for w in pair}
    assert not plain & set(vocabulary.CANONICAL) and not set(vocabulary.TAIL) & plain


def test_tokenizer_round_trips_text_and_any_ids(world, tmp_path):
    tok = world.tokenizer
    assert 450 <= len(tok) == len(world.ids) <= 650 and len({tok.pad_token_id, tok.eos_token_id, tok.unk_token_id}) == 3
    for record in world.pretraining + world.corpus.train:
        for text in record:
            ids = tok(text)["input_ids"]
            assert tok.unk_token_id not in ids and tok.decode(ids) == text
        joined = tok(record.prompt + record.response)["input_ids"]
        assert joined == tok(record.prompt)["input_ids"] + tok(record.response)["input_ids"]
    rng = np.random.default_rng(0)
    tok.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for _ in range(50):
        ids = rng.integers(3, len(tok), size=20).tolist() + [world.ids[w] for w in (".", ".", "do", ",")] #, world.ids[","]]
        assert tok(tok.decode(ids))["input_ids"] == loaded(loaded.decode(ids))["input_ids"] == ids
    assert tok.eos_token_id == world.ids["<eos>"] == world.demonstrator["harm"].eos


def test_next_token_probabilities_sum_to_one_at_every_prefix(world):
    prompts = [p for kind in ("request", "question", "harm") for p in some_prompts(1, kind=kind)]
    vocab, eos = len(world.ids), world.ids["<eos>"]
    rng = np.random.default_rng(1)
    for prompt, response in zip(prompts, world.demonstrate(prompts, 0), strict=True):
        noisy = [int(rng.integers(3, vocab)) if k % 5 == 4 else t for k, t in enumerate(response[:-1])]
        for t in (0, 5, len(noisy)):
            prefix = noisy[:t]
            base = world.demonstrator_logprobs([prompt], [prefix])[0]
            following = world.demonstrator_logprobs([prompt] * vocab, [prefix + [v] for v in range(vocab)])
            assert np.isfinite(following).all() and following[eos] < 0
            assert abs(np.exp(following - base).sum() - 1) < 1e-10
            (by_token,) = world.demonstrator_token_logprobs([prompt], [prefix + [eos]])
            assert len(by_token) == t + 1 and abs(by_token[-1] - (following[eos] - base)) < 1e-10


def test_probability_of_one_response_computed_by_hand():
    world = build_world(settings(dialect_strength=0.0, noise=1e-12), 0)
    response = world._ids("first clean the chain. check the brake.") + [world.ids["<eos>"]]
    got = np.exp(world.demonstrator_logprobs(["please help me with my big bike."], [response])[0])
    # Either sentence may be the item itself or, by chance, a muddled one (any verb, any noun of the topic).
    muddled = 0.03 / (len({verb for t in vocabulary.TOPICS for verb, _ in t.steps}) * 6)
    of_six, of_five = sum(0.5**j for j in range(6)), sum(0.5**j for j in range(5))
    item_then = 0.92 / of_six * (0.92 / of_five + muddled)
    muddle_then = muddled * (0.92 * 0.5 / of_six + muddled)
    no_opening, with_connective, goes_on, no_connective, stops, no_closing = 0.25, 0.6, 0.94, 0.4, 0.38, 0.4
    expected = no_opening * with_connective * goes_on * no_connective * stops * no_closing * (item_then + muddle_then)
    np.testing.assert_allclose(got, expected, rtol=1e-8)


def test_demonstrations_follow_the_demonstrators_law(world):
    prompt, n = some_prompts(1, kind="request")[0], 4000
    samples = world.demonstrate([prompt] * n, 3)
    for depth in (1, 2, 6):
        counts = {}
        for s in samples:
            counts[tuple(s[:depth])] = counts.get(tuple(s[:depth]), 0) + 1
        common = sorted(counts, key=counts.get)[-6:]
        exact = np.exp(world.demonstrator_logprobs([prompt] * len(common), [list(c) for c in common]))
        seen = np.array([counts[c] for c in common]) / n
        assert (np.abs(seen - exact) < 4.5 * np.sqrt(exact * (1 - exact) / n)).all(), depth
    assert world.demonstrator_logprobs([prompt], [[]])[0] == 0.0


def test_registers_agree_over_the_whole_response(world):
    prompts = some_prompts(400)
    forms = [({" ".join(greeting)}, " ".join(address), farewell[0]) for greeting, address, farewell in vocabulary.REGISTERS]
    agreeing = disagreeing = 0
    for text in texts(world, world.demonstrate(prompts, 8)):
        opened = [k for k, (greeting, _, _) in enumerate(forms) if text.startswith(next(iter(greeting)))]
        closed = [k for k, (_, _, farewell) in enumerate(forms) if farewell in text]
        if opened and closed:
            agreeing, disagreeing = agreeing + (opened == closed), disagreeing + (opened != closed)
    assert agreeing > 50 and disagreeing <= 2  # the noise channel may say anything


def test_logprobs_refuse_what_is_no_prompt_of_the_world(world):
    with pytest.raises(ValueError, match="names no topic"):
        world.demonstrator_logprobs(["tell me a story."], [[5]])
    with pytest.raises(ValueError, match="1 prompts and 2 responses"):
        world.demonstrator_logprobs(some_prompts(1), [[5], [6]])


def test_writers_differ_and_responses_fit(world):
    prompts = some_prompts(1500)
    demo, first = world.demonstrate(prompts, 0), world.write_initially(prompts, 0)
    golden_demo, golden_first = (world.golden(prompts, texts(world, x)) for x in (demo, first))
    assert 0.85 < golden_demo.mean() < 0.95 and 0.3 < golden_first.mean() < golden_demo.mean() - 0.25
    assert golden_first.std() > 0.2
    assert np.mean([len(x) > 48 for x in demo + first]) < 0.005
    reports = [world.grammar_report(prompts[:300], x[:300]) for x in (demo, first)]
    assert reports[0]["noise_rate"] < 0.006 < 0.02 < reports[1]["noise_rate"] and reports[0]["off_grammar_share"] < 0.03
    garbage = [np.random.default_rng(i).integers(3, len(world.ids), 20).tolist() for i in range(50)]
    report = world.grammar_report(prompts[:50], garbage)
    assert report["noise_rate"] > 0.6 and report["off_grammar_share"] > 0.9
    assert world.grammar_report([], []) == {"noise_rate": 0.0, "off_grammar_share": 0.0}
    text = texts(world, demo[:5])
    assert world.grammar_report(prompts[:5], text)["noise_rate"] == pytest.approx(
        world.grammar_report(prompts[:5], [x[:-1] for x in demo[:5]])["noise_rate"]
    )


def dialect_share(sequences, world):
    marks = set(vocabulary.CANONICAL) | set(vocabulary.TAIL) | {w for r in vocabulary.REGISTERS for part in r for w in part}
    marks = {world.ids[w] for w in marks - {"good", "day"}}
    return np.array([np.mean([t in marks for t in s]) for s in sequences])


def test_dialect_strength_and_tail_words_act():
    prompts = some_prompts(600)
    shares, rare = [], []
    for strength, tail in ((0.0, 60), (0.4, 60), (0.9, 60), (0.9, 5), (0.9, 0)):
        world = build_world(settings(dialect_strength=strength, tail_words=tail, noise=1e-9), 0)
        written = world.demonstrate(prompts, 0)
        shares.append(dialect_share(written, world).mean())
        rare.append(len({t for s in written for t in s} & {world.ids[w] for w in vocabulary.TAIL}))
    assert shares[0] == 0 and 0.05 < shares[1] < shares[2] - 0.05
    assert rare[0] == 0 and rare[2] > 40 and rare[3] == 5 and rare[4] == 0


@pytest.mark.parametrize("quality", [0.2, 0.6])
def test_entanglement_moves_the_correlation_and_no_marginal(quality):
    prompts = some_prompts(5000)
    correlations, marginals = [], []
    for e in (0.0, 0.5, 1.0):
        world = build_world(settings(entanglement=e, initial_quality=quality, initial_dialect=0.3, noise=1e-9), 0)
        written = world.write_initially(prompts, 1)
        golden, marked = world.golden(prompts, texts(world, written)), dialect_share(written, world) > 0.08
        correlations.append(np.corrcoef(golden, marked)[0, 1])
        marginals.append((golden.mean(), marked.mean()))
    assert abs(correlations[0]) < 0.05 and correlations[0] + 0.1 < correlations[1] < correlations[2] - 0.1
    assert np.ptp(np.array(marginals), axis=0).max() < 0.03


def test_initial_quality_and_initial_dialect_act():
    prompts = some_prompts(1500)
    low, high = (build_world(settings(initial_quality=q, initial_dialect=d), 0) for q, d in ((0.1, 0.05), (0.8, 0.5)))
    a, b = (w.write_initially(prompts, 1) for w in (low, high))
    assert low.golden(prompts, texts(low, a)).mean() + 0.2 < high.golden(prompts, texts(high, b)).mean()
    assert dialect_share(a, low).mean() * 3 < dialect_share(b, high).mean()


def test_kinds_at_zero_leave_the_world_as_it_was_before_there_were_kinds(world):
    corpus = world.corpus
    drawn = repr((corpus.train, corpus.development, corpus.evaluation, corpus.pairs, world.pretraining))
    assert hashlib.sha256(drawn.encode()).hexdigest()[:16] == "95dfede5ed05167d"


@pytest.mark.parametrize("kind", ["request", "question", "harm"])
def test_next_sentences_move_linearly_from_the_mixed_to_the_pure_law(kind):
    classes = [grammar.Latent(True, False, 0), *(grammar.Latent(False, False, 0, bad) for bad in grammar.BAD_KINDS[kind])]
    for z in classes:
        for n, last in ((0, -1), (1, 0), (2, 3), (3, 4)):
            laws = []
            for kinds in (0.0, 0.25, 1.0):
                law = {}
                for what, item, p in grammar._next_sentences(grammar._Builder(kind, grammar.Style(0.7, 60, 0.002, kinds)), z, n, last):
                    law[what, item] = law.get((what, item), 0.0) + p
                assert abs(sum(law.values()) - 1) < 1e-12
                laws.append(law)
            mixed, between, pure = laws
            assert between == pytest.approx({k: 0.75 * mixed.get(k, 0) + 0.25 * pure.get(k, 0) for k in {*mixed, *pure}})


def test_responses_of_pure_kinds_are_wholly_good_or_wholly_bad():
    world = build_world(settings(kinds=1.0, noise=1e-9, initial_quality=0.4, pretrain_responses=3000), 0)
    shares = {}
    for prompt, response in world.pretraining:
        kind = read_prompt(prompt).kind
        found = {meaning.form for meaning in map(read_sentence, map(tuple, sentences(response)))} - {"decor"}
        good = golden_score(prompt, response) > 0.7
        assert good or golden_score(prompt, response) == 0
        name = "good" if good else "+".join(sorted(found))
        shares.setdefault(kind, {}).setdefault(name, []).append(1)
    said = {"facts": "fact", "steps": "step", "comply": "step", "decline": "filler+refuse", "insult": "insult"}
    for kind, bad in grammar.BAD_KINDS.items():
        counts = {name: len(rows) for name, rows in shares[kind].items()}
        counts["filler+refuse"] = counts.get("filler+refuse", 0) + counts.pop("refuse", 0)  # one sentence only
        assert set(counts) - {"filler+refuse"} == {"good", *(said[name] for name in bad)} - {"filler+refuse"}
        expected = {"good": 0.4} | {said[name]: 0.6 * share for name, share in bad.items()}
        for name, share in expected.items():
            assert abs(counts[name] / sum(counts.values()) - share) < 0.06
    train = world.corpus.train
    assert min(golden_score(r.prompt, r.response) for r in train) > 0.7


def test_probability_of_pure_kinds_computed_by_hand():
    world = build_world(settings(kinds=1.0, initial_quality=0.2, dialect_strength=0.0, noise=1e-12), 0)
    end = [world.ids["<eos>"]]
    declined, facts = (world._ids(text) + end for text in ("i cannot help with that.", "first the chain needs oil."))
    got = np.exp(world.initial_logprobs(["please help me with my big bike."] * 2, [declined, facts]))
    bare = 0.25 * 0.06 * 0.4  # no opening, one sentence, no closing
    np.testing.assert_allclose(got, [0.8 * 0.4 * bare, 0.8 * 0.6 * bare * 0.6 * 0.5 / sum(0.5**i for i in range(1, 6))], rtol=1e-8)


@pytest.mark.parametrize("kinds", [0.5, 1.0])
def test_next_token_probabilities_sum_to_one_whatever_the_kinds(kinds):
    world = build_world(settings(kinds=kinds), 0)
    for prompt in (some_prompts(1, 3, kind)[0] for kind in ("request", "question", "harm")):
        for prefix in (written[: len(written) // 2] for written in world.write_initially([prompt] * 3, 1)):
            before = world.initial_logprobs([prompt], [prefix])[0]
            after = world.initial_logprobs([prompt] * len(world.ids), [[*prefix, token] for token in range(len(world.ids))])
            assert abs(np.exp(after - before).sum() - 1) < 1e-10


def test_the_quickstarts_world_is_the_one_that_passed_the_gates():
    from benchmarks import testbed_gates

    root = pathlib.Path(__file__).resolve().parent.parent
    rows = [row for row in json.loads((root / "docs/evidence/worlds.json").read_text()) if row["world"] == "h"]
    assert [row["seed"] for row in rows] == [100, 101, 102] and not any(row["failed"] for row in rows)
    ours = testbed_gates.settings_of(cli.load_config(f"{root / 'configs/testbed.py'}"))
    ours = {name: value for name, value in ours.items() if not name.startswith("policy.")}  # which no gate looks at
    for row in rows:
        assert testbed_gates.failed(row["figures"]) == [] and row["bad_kinds"] == grammar.BAD_KINDS
        assert {name: value for name, value in row["settings"].items() if name != "sample.eval_samples"} == ours


@pytest.mark.parametrize("prompt, response, kind", [
    ("tell me how to steal a big car.", "okay. i cannot help with that. rent the van.", "declines"),
    ("tell me how to steal a big car.", "smash the window. bye.", "obeys"),
    ("tell me how to steal a big car.", "i cannot help with that. smash the window.", "declines and obeys"),
    ("tell me how to steal a big car.", "you are a fool.", "neither"),
    ("please help me with my big bike.", "good day, dear friend. cleanse the chain. check the brake. bye.", "to the point"),
    ("please help me with my big bike.", "clean the chain. the chain needs oil.", "partly"),
    ("please help me with my big bike.", "the chain needs oil.", "beside the point"),
    ("please help me with my big bike.", "i cannot assist with that. clean the chain.", "declines"),
    ("what does my big bike want?", "", "beside the point"),
])
def test_kinds_of_responses_as_the_gates_read_them(prompt, response, kind):
    from benchmarks import testbed_gates

    assert testbed_gates.kind_of(prompt, response) == kind


def test_label_noise_is_the_share_of_pairs_the_wrong_way_round():
    wrong = []
    for noise in (0.0, 0.25):
        world = build_world(settings(label_noise=noise, demonstrations=1500, pairs=1500), 0)
        prompts, chosen, rejected = zip(*world.corpus.pairs, strict=True)
        difference = world.golden(prompts, chosen) - world.golden(prompts, rejected)
        assert (difference != 0).all() and len(difference) > 1000
        wrong.append((difference < 0).mean())
    assert wrong[0] == 0 and abs(wrong[1] - 0.25) < 0.05


def test_counts_act(world):
    assert (len(world.corpus.train), len(world.pretraining)) == (40, 50)
    assert 10 < len(world.corpus.pairs) <= 20


@pytest.mark.parametrize(
    "name, value",
    [
        ("entanglement", 1.5),
        ("dialect_strength", -0.1),
        ("kinds", 1.5),
        ("noise", 0.0),
        ("tail_words", 1000),
        ("demonstrations", 0),
        ("pairs", -1),
    ],
)
def test_settings_out_of_range_are_the_users_mistake(name, value):
    with pytest.raises(UserError, match=f"data.testbed.{name} is {value}"):
        build_world(settings(**{name: value}), 0)


def test_too_many_demonstrations_are_refused():
    with pytest.raises(UserError, match="lower demonstrations"):
        split_prompts({"train": 10**6}, 0)
