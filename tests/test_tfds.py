"""Builders: what is prepared is what the files say, is read back without this package's builders, and a bad line is one clear line."""

import gzip
import json
import random
import subprocess
import sys

import pytest

from irl_jax import cli, config
from irl_jax.data import sources
from irl_jax.data.tfds import reading
from irl_jax.errors import UserError

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "é"}]
HH = "\n\nHuman: hello{}\n\nAssistant:{}"


def write(path, records, packed=False):
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(text) if packed else text)
    return str(path)


def prepare(out, data, kind="demonstrations", *more):
    return cli.main(["prepare", f"--kind={kind}", f"--data={data}", f"--out={out}", *more])


def data_config(out, name, **settings):
    data = config.default().data
    data.update({"source": f"tfds:{name}", "tfds_data_dir": str(out), **settings})
    return data


def test_demonstrations_give_the_corpus_of_their_file(tmp_path, capsys):
    records = [{"prompt": f"p{i}", "response": f" é{i}\nline"} for i in range(40)] + [{"prompt": "", "response": "x"}]
    path = write(tmp_path / "d.jsonl.gz", records, packed=True)
    assert prepare(tmp_path / "out", path) == 0
    told = f"41 records in {tmp_path}/out/demonstrations/1.0.0; read them with --config.data.source=tfds:demonstrations"
    assert capsys.readouterr().out.startswith(told)
    read = sources.load_corpus(data_config(tmp_path / "out", "demonstrations"), 0)
    assert read == sources.load_corpus(data_config(tmp_path, "demonstrations", source=path), 0) and len(read.train) == 35
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["demonstrations"]


def test_conversations_keep_their_turns(tmp_path):
    records = [{"messages": [{"role": "system", "content": str(i)}, *TURNS]} for i in range(20)]
    path = write(tmp_path / "d.jsonl", records)
    assert prepare(tmp_path / "out", path) == 0
    assert [record for _, record in reading.Source("tfds:demonstrations", data_dir=str(tmp_path / "out")).records()] == records
    render = lambda turns: (json.dumps(turns[:-1], sort_keys=True), turns[-1]["content"])
    read = sources.load_corpus(data_config(tmp_path / "out", "demonstrations"), 0, render)
    assert read == sources.load_corpus(data_config(tmp_path, "", source=path), 0, render) and len(read.turns) == 20


def test_preferences_with_other_names_and_a_test_split(tmp_path):
    records = [{"q": f"p{i}", "chosen": f" c{i}", "worse": f" r{i}"} for i in range(20)]
    path, other = write(tmp_path / "p.jsonl", records), write(tmp_path / "t.jsonl", [{"q": "new", "chosen": "c", "worse": "r"}])
    assert prepare(tmp_path / "out", path, "preferences", f"--test={other}", "--fields=prompt=q,rejected=worse") == 0
    corpus = sources.load_corpus(data_config(tmp_path / "out", "preferences", eval_source="tfds:preferences@test"), 0)
    assert corpus.evaluation == [sources.Record("new", "c")] and len(corpus.pairs) == 19
    assert sources.PairRecord("p3", " c3", " r3") in corpus.pairs


def test_hh_transcripts_are_cut_as_their_file_is(tmp_path, capsys):
    odd = [{"chosen": HH.format("a", " x"), "rejected": HH.format("b", " y")}]
    records = odd + [{"chosen": HH.format(i, " good"), "rejected": HH.format(i, " bad")} for i in range(30)]
    path = write(tmp_path / "h.jsonl", records)
    assert prepare(tmp_path / "out", path, "hh") == 0
    assert "30 records in" in (said := capsys.readouterr().out) and "; left out: 1 prompt_not_shared;" in said
    read = sources.load_corpus(data_config(tmp_path / "out", "hh_rlhf"), 0)
    plain = sources.load_corpus(data_config(tmp_path, "", source=f"hh:{path}"), 0)
    assert (read.train, read.evaluation, read.pairs) == (plain.train, plain.evaluation, plain.pairs) and len(read.pairs) == 25


def test_records_are_found_in_several_files_and_parts_of_them(tmp_path):
    """Number i is the i-th of what is taken of the files, one after another, as ArrayRecord's own data source has it."""
    from array_record.python import array_record_data_source, array_record_module
    from tensorflow_datasets.core.utils.shard_utils import FileInstruction

    for name, size in (("a", 5), ("b", 3), ("c", 9)):
        writer = array_record_module.ArrayRecordWriter(str(tmp_path / name), "group_size:1")
        for i in range(size):
            writer.write(f"{name}{i}".encode())
        writer.close()
    instructions = [FileInstruction(str(tmp_path / name), skip, take, size) for name, skip, take, size in
                    (("a", 0, -1, 5), ("b", 1, 1, 3), ("c", 2, 6, 9))]
    files = reading._Files(instructions)
    expected = [b"a0", b"a1", b"a2", b"a3", b"a4", b"b1", *(f"c{i}".encode() for i in range(2, 8))]
    assert len(files) == 12 and [files[i] for i in range(12)] == expected
    assert files.__getitems__([11, 0, 5, 5]) == [b"c7", b"a0", b"b1", b"b1"]
    assert array_record_data_source.ArrayRecordDataSource(instructions).__getitems__(range(12)) == expected


def test_a_part_of_a_split(tmp_path):
    records = [{"prompt": f"p{i}", "response": "r"} for i in range(20)]
    assert prepare(tmp_path / "out", write(tmp_path / "d.jsonl", records)) == 0
    part = reading.Source("tfds:demonstrations", "train[5:9]", str(tmp_path / "out"))
    assert [record["prompt"] for _, record in part.records()] == [b"p5", b"p6", b"p7", b"p8"] and len(part) == 4


def test_tfds_alone_reads_it_and_tensorflow_is_not_there(tmp_path):
    assert prepare(tmp_path / "out", write(tmp_path / "d.jsonl", [{"prompt": "p", "response": "r"}])) == 0
    code = ("import sys, tensorflow_datasets as tfds\n"
            "print(tfds.data_source('demonstrations', split='train', data_dir=sys.argv[1])[0]['response'], 'tensorflow' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True)
    assert done.stdout == "b'r' False\n", done.stderr


@pytest.mark.parametrize(("kind", "records", "message"), [
    ("demonstrations", [{"prompt": "p", "respons": "r"}], "line 2: no field 'response' (its fields: prompt, respons)"),
    ("demonstrations", [{"prompt": "p", "response": " "}], "line 2: field 'response' is empty"),
    ("demonstrations", [{"prompt": 3, "response": "r"}], "line 2: field 'prompt' must be text, not int"),
    ("demonstrations", [{"messages": TURNS}], "line 2: field 'messages' where the first record has prompt and response; prepare the two"),
    ("preferences", [{"prompt": "p", "chosen": "c"}], "line 2: no field 'rejected'"),
    ("hh", [{"chosen": "c", "rejected": "r"}], "line 2: field 'chosen' has no '\\n\\nAssistant:' in it"),
])
def test_a_bad_line_is_one_line_and_leaves_nothing(tmp_path, capsys, kind, records, message):
    good = {"prompt": "p", "response": "r", "chosen": HH.format("", "c"), "rejected": HH.format("", "r")}
    assert prepare(tmp_path / "out", write(tmp_path / "d.jsonl", [good, *records]), kind) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("turns", "message"), [
    (TURNS[:1], "line 1: field 'messages' must be a list"),
    ([TURNS[0], {**TURNS[1], "name": "x"}], "line 1: turn 2 of field 'messages' has 'name' beside role and content"),
])
def test_bad_conversations(tmp_path, capsys, turns, message):
    assert prepare(tmp_path / "out", write(tmp_path / "d.jsonl", [{"messages": turns}])) == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_prepared(tmp_path, capsys):
    data = write(tmp_path / "d.jsonl", [{"prompt": "p", "response": "r"}])
    (tmp_path / "out" / "kept").mkdir(parents=True)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"prompt": "p", "response": "r"}\n' * 2000, mtime=0)[:-20])
    for flags, message in (
        ((tmp_path / "out", tmp_path / "none.jsonl"), "none.jsonl: no such file"),
        ((tmp_path / "out", cut), "cut.jsonl.gz: the gzip file is truncated or damaged"),
        ((tmp_path / "out", write(tmp_path / "empty.jsonl", [])), "empty.jsonl: no record in it can be used"),
        (("gs://bucket/out", data), "--out=gs://bucket/out: must be a folder of this machine"),
        ((tmp_path / "out", data, "demonstrations", "--fields=respons=a"), "--fields=respons=a: there is no field 'respons' here; did you"),
        ((tmp_path / "out", data, "demonstrations", "--fields=response"), "--fields=response: write it as response=answer"),
        ((data, data), f"--out={data}: is a file; give a folder"),
    ):
        assert prepare(*flags) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept"]
    assert prepare(tmp_path / "out", data) == 0 and prepare(tmp_path / "out", data) == 2
    assert "is there already; choose another, or remove it" in capsys.readouterr().err


def test_a_kill_leaves_nothing_that_the_same_command_minds(tmp_path):
    data = write(tmp_path / "d.jsonl", [{"prompt": "p", "response": "r"}])
    killed = ("import os, sys; from irl_jax import cli; from irl_jax.data.tfds import builders\n"
              "builders.Demonstrations._rows = lambda *_: (os.kill(os.getpid(), 9) for _ in range(1))\ncli.main(sys.argv[1:])")
    command = ["prepare", "--kind=demonstrations", f"--data={data}", f"--out={tmp_path}/out"]
    assert subprocess.run([sys.executable, "-c", killed, *command], capture_output=True).returncode == -9
    assert len(list((tmp_path / "out" / "demonstrations").iterdir())) == 1
    assert cli.main(command) == 0
    assert [path.name for path in (tmp_path / "out" / "demonstrations").iterdir()] == ["1.0.0"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["demonstrations"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    data = write(tmp_path / "d.jsonl", [{"prompt": "p", "response": random.Random(i).randbytes(40).hex()} for i in range(5000)])
    limited = ("import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,) * 2); "
               "from irl_jax import cli; sys.exit(cli.main(sys.argv[1:]))")
    done = subprocess.run([sys.executable, "-c", limited, "prepare", "--kind=demonstrations", f"--data={data}", f"--out={tmp_path}/out"],
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"{tmp_path}/out/demonstrations/1.0.0: cannot be written (write() failed: File too large); what was there" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("file", "content", "message"), [
    ("demonstrations-train.array_record-00000", b"", "its files cannot be read .*; prepare it again"),
    ("demonstrations-train.array_record-00000", None, "its files cannot be read .*; prepare it again"),
    ("dataset_info.json", b"{", "not found prepared as array_record"),
    ("features.json", b'{"pythonClassName": "os.system"}', "its features.json names the class 'os.system', which is none of TFDS's own"),
    ("features.json", b"3", "not found prepared as array_record"),
    ("features.json", b'{"type": "x"}', "not found prepared as array_record"),
    ("features.json", b'{"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text"}', "not found prepared as array_record"),
    ("features.json", b'{"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}', "its files cannot be read"),
    ("dataset_info.json", b'{"fileFormat": "array_record", "name": "demonstrations", "version": "1.0.0"}', "not found prepared as array"),
])
def test_damaged_files_are_one_line(tmp_path, file, content, message):
    assert prepare(tmp_path / "out", write(tmp_path / "d.jsonl", [{"prompt": "p", "response": "r"}])) == 0
    path = tmp_path / "out" / "demonstrations" / "1.0.0" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"tfds:demonstrations.*{message}") as caught:
        sources.load_corpus(data_config(tmp_path / "out", "demonstrations"), 0)
    assert "\n" not in str(caught.value)


FEATURES = "tensorflow_datasets.core.features."
OWN, TEXT = {"pythonClassName": "trapped.features.Text", "text": {}}, {"pythonClassName": f"{FEATURES}text_feature.Text", "text": {}}
OLD = {"type": "trapped.features.Text", "content": {}}


def features(**columns):
    return {"pythonClassName": f"{FEATURES}features_dict.FeaturesDict", "featuresDict": {"features": columns}}


@pytest.mark.parametrize(("file", "content"), [
    ("features.json", features(prompt=TEXT, response=OWN)),
    ("features.json", {**features(prompt=TEXT), "pythonClassName": OWN["pythonClassName"]}),
    ("features.json", features(prompt={"python_class_name": OWN["pythonClassName"], "text": {}})),
    ("features.json", features(prompt={"pythonClassName": f"{FEATURES}sequence_feature.Sequence", "sequence": {"feature": OWN}})),
    ("features.json", features(prompt={"pythonClassName": OWN["pythonClassName"], "jsonFeature": {"json": "{}"}})),
    ("features.json", features(prompt={"pythonClassName": f"{FEATURES}sequence_feature.Sequence",
                                       "jsonFeature": {"json": json.dumps({"feature": OLD, "length": 1})}})),
    ("features.json", {"type": f"{FEATURES}features_dict.FeaturesDict", "content": {"prompt": OLD}}),
    ("features.json", {"type": OLD["type"], "content": {}, "proto_cls": "x"}),
    ("dataset_info.json", {"features": features(prompt=OWN)}),
    ("dataset_info.json", {"moduleName": "trapped.features"}),
], ids=["column", "top", "snake case", "nested", "JSON", "in JSON text", "old column", "old top", "dataset_info", "module of the builder"])
@pytest.mark.parametrize("known", [False, True], ids=["not imported yet", "a class of the program's own"])
def test_no_class_but_tfds_own_is_made_and_nothing_imported(tmp_path, monkeypatch, file, content, known):
    assert prepare(tmp_path / "out", write(tmp_path / "d.jsonl", [{"prompt": "p", "response": "r"}])) == 0
    path = tmp_path / "out" / "demonstrations" / "1.0.0" / file
    path.write_text(json.dumps({**(json.loads(path.read_text()) if file == "dataset_info.json" else {}), **content}))
    (tmp_path / "trapped").mkdir()
    (tmp_path / "trapped" / "features.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    if known:
        import tensorflow_datasets as tfds

        registered = tfds.features.FeatureConnector._registered_features
        monkeypatch.setitem(registered, OLD["type"], type("Text", (tfds.features.Text,), {"__module__": "trapped.features"}))
    if "moduleName" in content:  # TFDS keeps that name and imports nothing
        assert len(reading.Source("tfds:demonstrations", data_dir=str(tmp_path / "out"))) == 1
    else:
        with pytest.raises(UserError, match="its features.json names the class 'trapped.features.Text', which is none of TFDS's own"):
            reading.Source("tfds:demonstrations", data_dir=str(tmp_path / "out"))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["huggingface:demonstrations", "kubric:demonstrations", "demonstrations/data_dir=elsewhere", "mnist"])
def test_what_is_not_prepared_is_neither_fetched_nor_made_by_code(tmp_path, monkeypatch, name):
    import tensorflow_datasets as tfds

    assert prepare(tmp_path / "out", write(tmp_path / "d.jsonl", [{"prompt": "p", "response": "r"}])) == 0
    for asked in ("builder", "data_source", "load"):
        monkeypatch.setattr(tfds, asked, lambda *_, **__: pytest.fail("TFDS was asked for a builder's code"))
    with pytest.raises(UserError, match="not found prepared as array_record"):
        reading.Source(f"tfds:{name}", data_dir=str(tmp_path / "out"))


def test_the_working_folder_is_not_on_the_path_of_the_command(tmp_path):
    data = write(tmp_path / "d.jsonl", [{"prompt": "p", "response": "r"}])
    for name in ("numpy", "jax", "yaml", "cv2", "h5py", "pydub"):  # some are TFDS's optional ones, which it looks for
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    for _ in range(2):
        done = subprocess.run([sys.executable, "-m", "irl_jax", "prepare", "--kind=demonstrations", f"--data={data}", "--out=out"],
                              cwd=tmp_path, capture_output=True, text=True)
    assert "is there already" in done.stderr and (tmp_path / "out" / "demonstrations").is_dir()
    assert not (tmp_path / "sprung").exists()


def test_a_missing_split_is_one_line(tmp_path):
    assert prepare(tmp_path / "out", write(tmp_path / "d.jsonl", [{"prompt": "p", "response": "r"}])) == 0
    with pytest.raises(UserError, match="tfds:demonstrations, split 'nosplit': not found prepared as array_record"):
        reading.Source("tfds:demonstrations@nosplit", data_dir=str(tmp_path / "out"))
