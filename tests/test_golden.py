"""Judges: exact, fitted, none; and what a user can get wrong."""

import gzip
import json
import pickle
import time

import numpy as np
import pytest

from irl_jax import config as config_lib
from irl_jax.errors import UserError
from irl_jax.evaluation import golden


class World:
    """A stand-in whose golden reward is the response's number of words."""

    def golden(self, prompts, responses):
        return [len(response.split()) for response in responses]


def rated_file(path, records=200, seed=0):
    """Reviews in which good and bad words tell the rating and all other words do not."""
    rng = np.random.default_rng(seed)
    with gzip.open(path, "wt") as file:
        for i in range(records):
            words = rng.choice(["the", "film", "was", "a", "plot"], 30).tolist()
            for place in range(0, 30, 4):
                words[place] = ["dreadful", "splendid"][i % 2]
            file.write(json.dumps({"text": " ".join(words), "rating": [2, 9][i % 2]}) + "\n")
    return str(path)


def classifier_config(source, **settings):
    config = config_lib.default()
    config.golden.update(kind="classifier", source=source, **{"window_words": 8, **settings})
    return config


def test_testbed_judge_is_the_worlds():
    judge = golden.make_judge(config_lib.default(), World())
    assert judge.heldout_accuracy is None and judge.name == "testbed"
    scores = judge.score(["p", "p"], ["one two", "one"])
    assert scores.dtype == np.float64 and scores.tolist() == [2.0, 1.0]
    assert judge.score([], []).shape == (0,)
    with pytest.raises(ValueError):
        judge.score(["p"], ["a", "b"])


def test_no_judge_scores_nan():
    config = config_lib.default()
    config.golden.kind = "none"
    judge = golden.make_judge(config)
    assert judge.heldout_accuracy is None and np.isnan(judge.score(["p"], ["r"])).all()


def test_classifier_judges_the_continuation_alone(tmp_path):
    judge = golden.make_judge(classifier_config(rated_file(tmp_path / "r.jsonl.gz")))
    assert judge.heldout_accuracy == 1.0
    scores = judge.score(["dreadful"] * 3, ["a splendid film", "a dreadful film", ""])
    assert scores[0] > 0.8 and scores[1] < 0.2 and 0.2 < scores[2] < 0.8
    np.testing.assert_array_equal(scores, judge.score(["splendid"] * 3, ["a splendid film", "a dreadful film", ""]))


def test_the_judges_field_names_are_its_own(tmp_path):
    config = classifier_config(rated_file(tmp_path / "r.jsonl.gz"))
    config.data.fields.text, config.data.fields.rating = "review", "label"  # of the data, not of golden.source
    assert golden.make_judge(config).heldout_accuracy == 1.0
    config.golden.rating_field = "stars"
    with pytest.raises(UserError, match="line 1: no field 'stars'.*see golden.text_field and golden.rating_field"):
        golden.make_judge(config, directory=tmp_path / "kept")


def test_labels_that_the_text_does_not_tell_give_chance(tmp_path):
    """Held-out records share no window with those fitted, so noise cannot be learnt by heart."""
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(f"w{i}" for i in rng.integers(0, 50, 30)), "rating": int(rng.integers(1, 11))})
             for _ in range(1000)]
    path = tmp_path / "noise.jsonl"
    path.write_text("\n".join(lines))
    assert abs(golden.make_judge(classifier_config(str(path), positive_rating=6.0)).heldout_accuracy - 0.5) < 0.1


def test_fitted_judge_is_kept_by_its_settings_and_data(tmp_path, monkeypatch):
    source, kept = rated_file(tmp_path / "r.jsonl.gz"), tmp_path / "kept"
    config = classifier_config(source)
    first = golden.make_judge(config, directory=kept)
    fitted = list(kept.iterdir())
    assert len(fitted) == 1
    with monkeypatch.context() as patch:
        patch.setattr(golden, "_fit", lambda *_: pytest.fail("fitted again"))
        again = golden.make_judge(config, directory=kept)
    assert again.heldout_accuracy == first.heldout_accuracy
    texts = ["a splendid film", "plot"]
    np.testing.assert_array_equal(first.score(["", ""], texts), again.score(["", ""], texts))
    golden.make_judge(classifier_config(source, window_words=9), directory=kept)
    assert len(list(kept.iterdir())) == 2
    rated_file(tmp_path / "r.jsonl.gz", seed=1)
    golden.make_judge(config, directory=kept)
    assert len(list(kept.iterdir())) == 3


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("damage", ["a pickle", "an array of objects", "cut short", "another length", "nothing"])
def test_a_kept_judge_that_is_damaged_is_fitted_again_and_no_pickle_is_loaded(damage, tmp_path):
    config, kept, trap = classifier_config(rated_file(tmp_path / "r.jsonl.gz")), tmp_path / "kept", Trap(tmp_path / "sprung")
    scores = golden.make_judge(config, directory=kept).score([""], ["a splendid film"])
    (file,) = kept.iterdir()
    whole, arrays = file.read_bytes(), dict(np.load(file))
    if damage == "a pickle":
        file.write_bytes(pickle.dumps(trap))
        file.with_suffix(".joblib").write_bytes(pickle.dumps(trap))  # the name it had in earlier versions
    elif damage == "an array of objects":
        np.savez(file, **{**arrays, "idf": np.array([trap], dtype=object)})
    elif damage == "another length":
        np.savez(file, **{**arrays, "idf": arrays["idf"][:-1]})
    else:
        file.write_bytes(whole[:-30] if damage == "cut short" else b"")
    again = golden.make_judge(config, directory=kept).score([""], ["a splendid film"])
    assert again == scores and dict(np.load(file)).keys() == arrays.keys() and not (tmp_path / "sprung").exists()


def test_windows_are_as_long_as_asked_and_cover_the_text():
    text = [str(i) for i in range(20)]
    texts, labels = golden._windows([(text, True)] * 200 + [(["short", "text"], False)], 5, np.random.default_rng(0))
    assert texts[-1] == "short text" and labels[-1] == 0 and len(texts) == 200 * golden._WINDOWS + 1
    starts = {int(window.split()[0]) for window in texts[:-1]}
    assert starts == set(range(16)) and all(len(window.split()) == 5 for window in texts[:-1])


@pytest.mark.parametrize("content, expected", [
    (None, "no such file"),
    ('{"text": "a", "rating": 9}\n{"text": "b"}\n', "line 2: no field 'rating'"),
    ('{"rating": 9}\n', "line 1: no field 'text'"),
    ('{"text": "a", "rating": "nine"}\n', "line 1: field 'rating' must be a number"),
    ('{"text": "a", "rating": 9}\nnonsense\n', "line 2: not JSON"),
    ('{"text": "a b", "rating": 9}\n' * 5, "same side"),
    ("", "missing"),
    ('{"text": "a", "rating": 9}\n{"text": "?", "rating": 1}\n', "same side"),  # one of the two is held out
    ('{"text": "..", "rating": 9}\n{"text": "?", "rating": 1}\n' * 9, "too little text"),
])
def test_a_bad_source_is_one_clear_line(tmp_path, content, expected):
    path = tmp_path / "r.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=expected) as error:
        golden.make_judge(classifier_config(str(path)))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_bad_settings_are_named(tmp_path):
    config = config_lib.default()
    with pytest.raises(UserError, match="golden.kind: 'testbed' needs"):
        golden.make_judge(config)
    config.golden.kind = "oracle"
    with pytest.raises(UserError, match="'oracle' is not one of testbed, classifier, hf_reward, none"):
        golden.make_judge(config)
    with pytest.raises(UserError, match="golden.source"):
        golden.make_judge(classifier_config(""))
    with pytest.raises(UserError, match="golden.source.*cannot be read"):
        golden.make_judge(classifier_config(str(tmp_path / "none.jsonl")), directory=tmp_path)
    source = rated_file(tmp_path / "r.jsonl.gz")
    with pytest.raises(UserError, match="golden.window_words"):
        golden.make_judge(classifier_config(source, window_words=0))
    config = classifier_config(source)
    config.data.source = source
    with pytest.raises(UserError, match="is data.source too"):
        golden.make_judge(config)


@pytest.mark.shared
@pytest.mark.slow
def test_movie_reviews(shared, tmp_path):
    config = classifier_config(str(shared / "data" / "imdb" / "test.jsonl.gz"), window_words=48)
    start = time.monotonic()
    judge = golden.make_judge(config, directory=tmp_path)
    assert time.monotonic() - start < 60
    assert judge.heldout_accuracy > 0.78
    start = time.monotonic()
    golden.make_judge(config, directory=tmp_path)
    assert time.monotonic() - start < 5
    scores = judge.score([""] * 2, ["a wonderful film, I loved every minute of it", "the worst waste of time, boring and awful"])
    assert scores[0] > 0.9 and scores[1] < 0.1
