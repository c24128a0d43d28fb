"""Streaming: the same batches as from memory where both can be made, whatever order they are asked in, every record once a pass."""

import json
import shutil
import subprocess
import sys

import hosts
import numpy as np
import pytest
from test_runs import _tiny_folder
from tiny import tiny_config

from irl_jax import checkpoint, checks, cli, stages
from irl_jax.data import batching, streaming
from irl_jax.errors import UserError
from irl_jax.stages import inputs, training
from irl_jax.stages.context import Context
from irl_jax.types import Example

LETTERS = list("abcdefghijklmnopqrstuvwxyz")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """240 records on 120 prompts of distinct letters, the longest ones 5 + 9 tokens; evaluation has a file of its own."""
    folder = tmp_path_factory.mktemp("streaming")
    rng = np.random.default_rng(0)
    prompts = [" ".join(rng.permutation(LETTERS)[:5]) for _ in range(120)]
    records = [{"prompt": prompts[i % 120], "response": " " + " ".join(rng.choice(LETTERS, rng.integers(1, 9)))} for i in range(240)]
    (folder / "d.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "e.jsonl").write_text(json.dumps({"prompt": "a a", "response": " b"}) + "\n")
    assert cli.main(["prepare", "--kind=demonstrations", f"--data={folder}/d.jsonl", f"--out={folder}/tfds"]) == 0
    _tiny_folder(folder / "model")
    return folder


def configured(folder, **changes):
    settings = {"data__heldout_fraction": 0.0, "data__eval_source": f"{folder}/e.jsonl", "data__development_fraction": 0.0, **changes}
    return tiny_config(
        model__path=str(folder / "model"), golden__kind="none", data__source="tfds:demonstrations",
        data__tfds_data_dir=str(folder / "tfds"), data__streaming=True, data__streaming_records=32, data__truncate_prompts=True,
        data__max_prompt_tokens=8, data__max_response_tokens=10, sft__row_tokens=32, reward__recipes=("init_demo",),
        reward__controls=("random",), policy__recipes=(), **settings)


def everything(context):
    """All training records, tokenised, in the order of the file."""
    return context.encode(context.stream.read(range(context.stream.size)))[0]


def host(batch):
    return [np.asarray(leaf) for leaf in batch]


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(host(left), host(right), strict=True))


def test_unpacked_batches_are_those_from_memory(prepared):
    config = configured(prepared, sft__packing=False, sft__batch_size=12)
    context = Context(config, None)
    streamed, updates = training.streamed_feed(context, config.sft, "sft")
    memory, expected = training.sequence_feed(context, everything(context), config.sft, "sft")
    assert updates == expected == config.sft.steps
    for step in (0, 7, 19, 20, 45):  # 20 batches are a pass
        batch, extra = streamed(step)
        assert extra == {"left_out": 0} and same(batch, memory(step))


def test_a_packed_block_is_what_packing_its_window_in_memory_gives(prepared):
    config = configured(prepared, sft__batch_size=24)
    context = Context(config, None)
    examples = everything(context)
    plan = streaming.plan([len(e.prompt) + len(e.response) for e in examples], 24, 32, True, seed=0)
    assert (plan.blocks, plan.rows) == (2, 12) and 24 <= plan.window <= 40
    blocks = streaming.Blocks(context.stream, lambda records: context.encode(records)[0], plan, seed=0)
    order = batching.feed(240, plan.window, 0)
    for number in (0, 3, 11):
        made, left_out = blocks(number)
        chosen = [examples[i] for i in order(number)]
        rows = batching.pack_rows(chosen[: len(chosen) - left_out], 32)
        assert left_out <= 2 and made.tokens.shape == (12, 32)
        assert same(batching.take(made, np.arange(len(rows.tokens))), rows) and not made.segments[len(rows.tokens) :].any()
        assert np.mean(made.segments > 0) > 0.7


def test_batches_are_a_function_of_the_step_on_any_mesh(prepared):
    config = configured(prepared, sft__batch_size=24)
    feed, _ = training.streamed_feed(Context(config, None), config.sft, "sft")
    straight = [feed(step) for step in range(4)]
    again, _ = training.streamed_feed(Context(config, None), config.sft, "sft")
    for step in (3, 0, 2):
        batch, extra = again(step)
        assert same(batch, straight[step][0]) and extra == straight[step][1]
    other, _ = training.streamed_feed(Context(configured(prepared, sft__batch_size=24, seed=1), None), config.sft, "sft")
    assert not same(other(0)[0], straight[0][0])


class Spy:
    """A stream of one-token prompts and responses that notes what is read."""

    def __init__(self, size):
        self.size, self.seen = size, []

    def read(self, indices):
        self.seen += [int(i) for i in indices]
        return list(map(int, indices))


def encode(indices):
    return [Example(np.asarray([i], np.int32), np.ones(1 + i % 3, np.int32), True, 0) for i in indices]


@pytest.mark.parametrize("packing", [True, False])
def test_hosts_read_their_own_records_and_together_every_one_once(packing):
    lengths = [2 + i % 3 for i in range(960)]
    plan = streaming.plan(lengths, 32, 8, packing, seed=0)
    if packing:  # a window that divides the pass, and always fits
        plan = plan._replace(window=24)
    assert (plan.blocks, plan.rows) == (2, 16)
    whole, parts = Spy(960), [Spy(960), Spy(960)]
    steps = 960 // (plan.blocks * plan.window)
    for step in range(steps):
        expected, left_out = streaming.Blocks(whole, encode, plan, 0).part(step, 0, 32)
        halves = [streaming.Blocks(spy, encode, plan, 0).part(step, 16 * host, 16 * host + 16) for host, spy in enumerate(parts)]
        assert left_out == 0 and same(batching.join([rows for rows, _ in halves]), expected)
    assert sorted(parts[0].seen + parts[1].seen) == sorted(whole.seen) == list(range(960))
    assert len(parts[0].seen) == len(parts[1].seen) == 480


def test_ranges_that_cut_blocks_and_rows_that_only_fill(prepared):
    plan = streaming.plan([3], 10, 8, False, seed=0)
    assert (plan.blocks, plan.rows) == (1, 10)
    plan = streaming.plan([2, 3, 4], 24, 8, True, seed=0)
    blocks = streaming.Blocks(Spy(1000), encode, plan, 0)
    whole, _ = blocks.part(5, 0, 32)
    assert whole.tokens.shape == (32, 8) and not whole.segments[24:].any() and whole.segments[:24].any(1).sum() >= 20
    for start, stop in ((0, 8), (8, 16), (10, 30), (24, 32), (26, 30)):
        assert same(blocks.part(5, start, stop)[0], batching.take(whole, np.arange(start, stop)))


def test_what_finds_no_room_is_counted_and_the_last_of_its_window():
    plan = streaming.Plan(1, 4, 8, 14, True)  # 14 records of 2 to 4 tokens, 41 in all, for 32 places
    rows, left_out = streaming.Blocks(Spy(14), encode, plan, 0)(0)
    order = [int(i) for i in batching.feed(14, 14, 0)(0)]
    kept = sorted(rows.tokens[(rows.segments > 0) & (rows.mask == 0)])
    assert left_out >= 3 and kept == sorted(order[: 14 - left_out])


def test_the_plan_fills_rows_and_seldom_overfills():
    lengths = np.random.default_rng(0).integers(20, 600, 4096)
    plan = streaming.plan(lengths, 64, 2048, True, seed=0)
    assert (plan.blocks, plan.rows) == (4, 16)
    drawn = np.random.default_rng(1).choice(lengths, (200, plan.window))
    rows = [len(batching.layout(list(window), 2048)) for window in drawn]
    assert np.mean(np.asarray(rows) > 16) < 0.12 and drawn.sum(1).mean() > 0.85 * 16 * 2048
    assert streaming.plan([3000], 34, 4096, True, seed=0)[:2] == (1, 34) and streaming.plan([3000], 12, 4096, True, seed=0).window == 12


def test_bounded_parts_share_no_prompt_with_training(prepared):
    config = configured(prepared, data__eval_source="", data__heldout_fraction=0.2, data__development_fraction=0.1)
    corpus, stream = streaming.load(config.data, 0)
    held = {record.prompt for record in corpus.evaluation + corpus.development}
    assert [len(part) for part in corpus[:3]] == [32, 24, 32] and corpus.streamed == stream.size == 240
    assert len(held) == 56 and stream.held == held  # one record a prompt
    rest = stream.read(range(240))
    assert not held & {record.prompt for record in rest} and set(corpus.train) <= set(rest) and len(rest) == 240 - 2 * 56
    assert streaming.load(config.data, 0)[0] == corpus != streaming.load(config.data, 1)[0]
    few, stream = streaming.load(configured(prepared, data__max_records=50).data, 0)
    assert stream.size == 50 and len(few.train) == 32


def test_nothing_for_training_or_evaluation_is_one_line(prepared):
    with pytest.raises(UserError, match="no record is left for evaluation out of 240; see data.heldout_fraction"):
        streaming.load(configured(prepared, data__eval_source="").data, 0)
    with pytest.raises(UserError, match="no record is left for evaluation out of 1;"):
        streaming.load(configured(prepared, data__eval_source="", data__heldout_fraction=0.9, data__max_records=1).data, 0)


@pytest.mark.parametrize(("changes", "message"), [
    ({"data__source": "d.jsonl"}, "data.streaming: data.source = 'd.jsonl' is not read by random access; prepare it"),
    ({"data__kind": "continuations"}, "data.streaming: needs data.kind = 'pairs'"),
    ({"data__max_demonstrations": 5}, "data.max_demonstrations: with data.streaming all are read"),
    ({"data__truncate_prompts": False}, "data.streaming: a prompt that is too long would show only"),
    ({"data__streaming_records": 0}, "data.streaming_records = 0: must be positive"),
])
def test_what_cannot_be_streamed(prepared, changes, message):
    config = configured(prepared)
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    with pytest.raises(UserError, match=message):
        checks.check(config)


def test_a_run_that_goes_on_ends_bitwise_the_same(prepared, tmp_path, monkeypatch):
    def run(name):
        config = configured(prepared, sft__steps=8, sft__batch_size=8, checkpoint__every_steps=3)
        stages.run_pipeline(config, tmp_path / name, ("pretrain", "sft"))

    run("straight")
    plain = streaming.Blocks.part

    def broken(self, step, start, stop):
        if step == 6:
            raise KeyboardInterrupt
        return plain(self, step, start, stop)

    monkeypatch.setattr(streaming.Blocks, "part", broken)
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    assert checkpoint.latest_step(tmp_path / "stopped" / "sft" / "checkpoints") in (3, 6)
    monkeypatch.undo()
    run("stopped")
    lines = [(tmp_path / name / "sft" / "metrics.jsonl").read_text() for name in ("straight", "stopped")]
    assert lines[0] == lines[1] and lines[0].count("left_out") == 8
    first, second = (checkpoint_bytes(tmp_path / name / "sft" / "leaves") for name in ("straight", "stopped"))
    assert first == second and first


def checkpoint_bytes(folder):
    described = json.loads((folder / str(checkpoint.latest_step(folder)) / "manifest.json").read_text())["leaves"]
    tree = checkpoint.load_tree(folder, {name: np.zeros(shape, dtype) for name, (shape, dtype) in described.items()})
    return {name: leaf.tobytes() for name, leaf in tree.items()}


@pytest.mark.slow
def test_a_whole_run_streams(prepared, tmp_path):
    config = configured(prepared, data__eval_source="", data__heldout_fraction=0.2, sft__steps=3, sft__batch_size=8)
    stages.run_pipeline(config, tmp_path / "w")
    results = json.loads((tmp_path / "w" / "results.json").read_text())
    assert {role for role in results["policies"] if "@" not in role} == {"init", "demo", "sft"} and 0 <= results["rewards"]["init_demo"]["heldout_auc"] <= 1


CONFIG = """
from test_streaming import configured
import pathlib
def get_config(name=""):
    return configured(pathlib.Path({folder!r}), sft__steps=5, sft__batch_size=32, data__development_fraction=0.1)
"""


@pytest.mark.slow
def test_two_hosts_train_as_one(prepared, tmp_path):
    (tmp_path / "config.py").write_text(CONFIG.format(folder=str(prepared)))
    command = ["-m", "irl_jax", "run", f"--config={tmp_path}/config.py", "--stages=pretrain,sft", "--compilation_cache="]
    done = subprocess.run([sys.executable, *command, f"--workdir={tmp_path}/one"], env=hosts.environment(2), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ends = hosts.finish(hosts.start([*command, f"--workdir={tmp_path}/two", "--patience=40"], 2, 1, stdout=subprocess.DEVNULL))
    assert [status for status, _ in ends] == [0, 0], ends
    one, two = (list(map(json.loads, (tmp_path / name / "sft" / "metrics.jsonl").read_text().splitlines())) for name in ("one", "two"))
    assert len(one) == 5 and [line["tokens"] for line in one] == [line["tokens"] for line in two]
    np.testing.assert_allclose([line["loss"] for line in one], [line["loss"] for line in two], rtol=1e-5)


def test_streamed_files_count_whole_where_they_are_not_too_many(tmp_path, monkeypatch):
    files = [tmp_path / name for name in "ab"]
    for file in files:
        file.write_bytes(bytes(5 * inputs._ENDS))
    first = inputs._streamed_digest(files)
    files[1].write_bytes(bytes(2 * inputs._ENDS) + b"x" + bytes(3 * inputs._ENDS - 1))
    assert inputs._streamed_digest(files) != first
    monkeypatch.setattr(inputs, "_WHOLE", 0)
    ends = inputs._streamed_digest(files)
    files[1].write_bytes(bytes(5 * inputs._ENDS))
    assert inputs._streamed_digest(files) == ends
    files[1].write_bytes(bytes(5 * inputs._ENDS - 1) + b"x")
    assert inputs._streamed_digest(files) != ends


def test_a_run_goes_on_over_the_same_files_alone(prepared, tmp_path, capsys):
    folder = shutil.copytree(prepared, tmp_path / "data")
    config = configured(folder)
    stages.run_pipeline(config, tmp_path / "w", ("pretrain",))
    shard = next(folder.rglob("*.array_record*"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="the streamed records are not those that this workdir was begun with"):
        stages.run_pipeline(config, tmp_path / "w", ("sft",))
