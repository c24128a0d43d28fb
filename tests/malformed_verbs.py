"""More rows of the table of malformed inputs: what the verbs status, compare, prepare and config, --sweep and data.streaming meet."""

from __future__ import annotations

import gzip
import os

from malformed_box import DEEP, GOOD, NOTHING, RIGHT, WANTED, Case, get_config, lines, link, replaced

STREAMS = {
    "run: streaming of continuations": Case(lambda b: b.testbed(
        "data.streaming=true", "data.source=tfds:x", "data.kind=continuations"),
        "config.data.streaming: needs data.kind = 'pairs', records of prompt and response, not 'continuations'"),
    "run: streaming of so many demonstrations": Case(lambda b: b.testbed(
        "data.streaming=true", "data.source=tfds:x", "data.max_demonstrations=3"),
        "config.data.max_demonstrations: with data.streaming all are read; limit them by data.max_records"),
    "run: streaming of prompts that may be too long": Case(lambda b: b.testbed("data.streaming=true", "data.source=tfds:x"),
        "config.data.streaming: a prompt that is too long would show only in the middle of training; set data.truncate_prompts to True"),
    "run: streaming of a file": Case(lambda b: b.run("data.streaming=true", data__source=RIGHT),
        "config.data.streaming: data.source = '~/data__source.jsonl' is not read by random access; prepare it (python -m irl_jax prepare "
        "--help) and name it as tfds:NAME"),
    "run: streaming of what is not prepared": Case(lambda b: b.run(
        "data.streaming=true", "data.source=tfds:demonstrations", f"data.tfds_data_dir={b.path}", "data.truncate_prompts=true"),
        "tfds:demonstrations, split 'train': not found prepared as array_record in ~ (…); prepare it with "
        "tfds.builder('demonstrations', file_format='array_record').download_and_prepare(), or see data.tfds_data_dir"),
}  # fmt: skip

STATUS = {
    "status: nowhere": Case(lambda b: ["status", str(b / "nowhere")], "~/nowhere: no such folder; give the --workdir of a run"),
    "status: a file": Case(lambda b: ["status", str(b.write("w", "x"))],
        "~/w: not a workdir (no config.json there); give the --workdir of a run"),
    "status: a loop of links": Case(lambda b: ["status", str(link(b, "w", "w"))], "~/w: no such folder; give the --workdir of a run"),
    "status: a name that no file can have": Case(lambda b: ["status", str(b / ("w" * 300))],
        "~/w…...: a name of … letters is too long for the file system"),
    "status: another store": Case(lambda b: ["status", "s3://bucket/w"],
        "s3://bucket/w: no way to reach s3://; the object store that is known is gs://"),
    "status: config.json cut short": Case(lambda b: ["status", str(replaced(b.begun(), "config.json", '{"config": {'))],
        "~/w/config.json: broken JSON (…); bring the run's own back, or choose another --workdir"),
    "status: config.json nested without end": Case(lambda b: ["status", str(replaced(b.begun(), "config.json", DEEP))],
        "~/w/config.json: broken JSON (…); bring the run's own back, or choose another --workdir"),
    "status: config.json whose variant leads out": Case(lambda b: ["status", str(b.edit(
        b.begun() / "config.json", lambda c: c["config"].update(variants=["policy/../../x = init_sft"])))],
        'config.variants: cannot read "policy/../../x = init_sft"; write "GROUP/NAME = RECIPE key=value ..." with GROUP one of reward, '
        'policy, adversarial, dpo, spin, rejection, and NAME of up to 100 letters (a-z), digits, dots and dashes, no dot at its end'),
    "status: config.json beyond all numbers": Case(lambda b: ["status", str(b.edit(
        b.begun() / "config.json", lambda c: c["config"]["sft"].update(learning_rate=10**400)))],
        "~/w/config.json: a key of another type: int too large to convert to float"),
    "status: done.json cut short": Case(lambda b: ["status", str(b.begun(sft__done='{"timing": {'))],
        "~/w/sft/done.json: broken JSON (…); remove it and the done.json of the stage that writes it, and start the same command again"),
    "status: metrics.jsonl that is a folder": Case(lambda b: ["status", str(
        replaced(b.begun(), "sft/metrics.jsonl/x", "x"))], "~/w/sft/metrics.jsonl: cannot be read (…)"),
    "status: checkpoints that are a file": Case(lambda b: ["status", str(replaced(
        replaced(b.begun(), "sft/metrics.jsonl", '{"step": 3}\n'), "sft/checkpoints", "x"))], "~/w/sft/checkpoints: cannot be read (…)"),
    "status: sweep.json cut short": Case(lambda b: ["status", str(b.swept('{"members": ["seed=0"'))],
        "~/s/sweep.json: broken JSON (…); bring the sweep's own back, or choose another folder"),
    "status: sweep.json that leads out": Case(lambda b: ["status", str(b.swept({"members": ["../../seed=0"]}))],
        "~/s/sweep.json: not a sweep.json of irl_jax; choose another folder"),
    "status: sweep.json of numbers": Case(lambda b: ["status", str(b.swept({"members": [1, 2]}))],
        "~/s/sweep.json: not a sweep.json of irl_jax; choose another folder"),
    "status: a sweep's member that is damaged": Case(lambda b: ["status", str(replaced(
        b.swept({"members": ["seed=0"]}), "seed=0/config.json", "{}"))],
        "~/s/seed=0/config.json: has no object 'config', which irl_jax writes there; bring the run's own back, or choose another "
        "--workdir"),
}  # fmt: skip

SWEEPS = {
    "sweep: a value of another type": Case(lambda b: b.sweep("sft.steps=3,many"), "--sweep=sft.steps=many: takes a whole number"),
    "sweep: a value that is not a number": Case(lambda b: b.sweep("sft.learning_rate=0.1,nan"),
        "--sweep=sft.learning_rate=nan: takes a finite number"),
    "sweep: a key that is none": Case(lambda b: b.sweep("sft.lerning_rate=1,2"),
        "unknown config key 'sft.lerning_rate'; did you mean 'sft.learning_rate'?"),
    "sweep: a key of Python's": Case(lambda b: b.sweep("policy.__class__=x"),
        "unknown config key 'policy.__class__'; did you mean 'policy.steps'?"),
    "sweep: a section": Case(lambda b: b.sweep("checkpoint=1"),
        "--sweep=checkpoint is a section; set one of its keys: checkpoint.every_seconds, checkpoint.every_steps, checkpoint.keep"),
    "sweep: no values": Case(lambda b: b.sweep("seed="), "--sweep=seed=: write it as --sweep=KEY=V1,V2,..."),
    "sweep: no key": Case(lambda b: b.sweep("=1,2"), "--sweep==1,2: write it as --sweep=KEY=V1,V2,..."),
    "sweep: an empty value": Case(lambda b: b.sweep("seed=1,,2"), "--sweep=seed=: takes a whole number"),
    "sweep: a value twice": Case(lambda b: b.sweep("sft.learning_rate=0.1,1e-1"),
        "--sweep=sft.learning_rate=0.1,1e-1: the value 1e-1 is given twice"),
    "sweep: a key twice": Case(lambda b: b.sweep("seed=1", "seed=2"), "--sweep=seed=...: seed is given twice; a sweep sets it, once"),
    "sweep: a key that is set for all": Case(lambda b: b.sweep("seed=1,2", "--config.seed=3"),
        "--sweep=seed=...: seed is given twice; a sweep sets it, once"),
    "sweep: a bracket that is open": Case(lambda b: b.sweep("eval.best_of=(1,2"),
        "--sweep=eval.best_of=(1,2: a bracket or a quote is not closed"),
    "sweep: several values without brackets": Case(lambda b: b.sweep("eval.best_of=1,2"),
        "--sweep=eval.best_of=1,2: eval.best_of takes several values itself; write each choice in brackets: eval.best_of=(a,b),(c),()"),
    "sweep: brackets nested without end": Case(lambda b: b.sweep(f"eval.best_of={'(' * 5000}{')' * 5000}"),
        "--sweep=eval.best_of=((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((: takes values separated "
        "by commas, such as a,b,c"),
    "sweep: words that are no values": Case(lambda b: b.sweep("eval.best_of=[1,(2]"),
        "--sweep=eval.best_of=[1,(2]: a bracket or a quote is not closed"),
    "sweep: a number of hundreds of digits": Case(lambda b: b.sweep(f"seed={'9' * 400}"),
        "--sweep=seed=9999999999999999999999999999999999999999: takes a whole number of at most 63 bits"),
    "sweep: a value out of range": Case(lambda b: b.sweep("policy.beta=0.1,-1"),
        "policy.beta=-1.0: config.policy.beta = -1.0: must not be negative"),
    "sweep: a value that leads out": Case(lambda b: b.sweep("data.source=../../etc/passwd,testbed"),
        "data.source=.._.._etc_passwd-eb111efe: config.model.path: name a Hugging Face folder or hub model for data.source = "
        "'../../etc/passwd' (only the testbed initialises from scratch)"),
    "sweep: a variant that leads out": Case(lambda b: b.sweep('variants=("policy/../../x = init_sft")'),
        'variants=policy_.._.._x___init_sft-3d83a48d: config.variants: cannot read "policy/../../x = init_sft"; write "GROUP/NAME = '
        'RECIPE key=value ..." with GROUP one of reward, policy, adversarial, dpo, spin, rejection, and NAME of up to 100 letters '
        '(a-z), digits, dots and dashes, no dot at its end'),
    "sweep: a stage that is none": Case(lambda b: ["run", f"--workdir={b / 's'}", "--stages=../sft", "--sweep=seed=1,2"],
        "seed=1: --stages: unknown stage '../sft'; one of pretrain, sft, sample, reward, robust, policy, adversarial, dpo, spin, rejection, "
        "evaluate, report"),
    "sweep: more runs than anybody has": Case(lambda b: b.sweep(*(f"{stage}.batch_size={','.join(map(str, range(1, 101)))}"
                                                                 for stage in ("sft", "reward", "policy", "dpo"))),
        "--sweep: 100,000,000 runs are more than the 10,000 that a sweep takes"),
    "sweep: the workdir of a run": Case(lambda b: b.sweep("seed=1,2", workdir=b.begun()),
        "~/w: is the workdir of one run; choose another --workdir for the sweep"),
    "sweep: a folder that is somebody's": Case(lambda b: b.sweep("seed=1,2", workdir=b.write("s/thesis.tex", "x").parent),
        "~/s: not empty and not a sweep's folder (no sweep.json there); choose another --workdir"),
    "sweep: a file": Case(lambda b: b.sweep("seed=1,2", workdir=b.write("s", "x")), "~/s: is a file; --workdir takes a folder"),
    "sweep: a folder below a file": Case(lambda b: b.sweep("seed=1,2", workdir=b.write("s", "x") / "deeper"),
        "~/s/deeper/sweep.json: cannot be written (…); what was there before is whole: let it be written there and start the same "
        "command again"),
    "sweep: a lock that is a link": Case(lambda b: (s := b.swept({"members": ["seed=0"]}), b.write("thesis.tex", "x"),
        os.symlink("../thesis.tex", s / ".lock"), b.sweep("seed=1,2"))[3],
        "~/s/.lock: is a link, where irl_jax has a file of its own; remove it"),
    "sweep: a loop of links": Case(lambda b: b.sweep("seed=1,2", workdir=link(b, "s", "s")),
        "~/s: is a link to nothing; --workdir takes a folder"),
    "sweep: sweep.json that is no JSON": Case(lambda b: b.sweep("seed=1,2", workdir=b.swept(b"\0")),
        "~/s/sweep.json: broken JSON (…); bring the sweep's own back, or choose another folder"),
    "sweep: sweep.json that leads out": Case(lambda b: b.sweep("seed=1,2", workdir=b.swept({"members": ["../x=1"]})),
        "~/s/sweep.json: not a sweep.json of irl_jax; choose another folder"),
    "sweep: a full disk": Case(lambda b: b.sweep("seed=1,2"),
        "~/s/sweep.json: cannot be written (…); what was there before is whole: make room and start the same command again",
        limit=16),
}  # fmt: skip

PREPARES = {
    "prepare: a line that is no JSON": Case(lambda b: b.prepare(RIGHT + b"{\n"), "~/in.jsonl, line 41: not JSON (… at column 1)"),
    "prepare: a line in the last of many": Case(lambda b: b.prepare(RIGHT * 60 + b'{"prompt": "w1"}\n'),
        "~/in.jsonl, line 2401: no field 'response' (its fields: prompt); see data.fields"),
    "prepare: bytes that are no UTF-8": Case(lambda b: b.prepare(b'{"prompt": "\xff", "response": "w"}\n'),
        "~/in.jsonl, line 1: byte 12 is not UTF-8"),
    "prepare: a response that is a number": Case(lambda b: b.prepare(RIGHT + lines({"prompt": "w1", "response": 3})),
        "~/in.jsonl, line 41: field 'response' must be text, not int"),
    "prepare: half of a surrogate pair": Case(lambda b: b.prepare(b'{"prompt": "w1", "response": "\\ud800"}\n'),
        "~/in.jsonl, line 1: field 'response' holds half of a surrogate pair, which is not valid Unicode"),
    "prepare: an empty file": Case(lambda b: b.prepare(b""), "~/in.jsonl: no record in it can be used; give a file with records"),
    "prepare: gzip cut short": Case(lambda b: b.prepare(gzip.compress(GOOD * 2000, mtime=0)[:-20]),
        "~/in.jsonl: the gzip file is truncated or damaged (…); fetch it again"),
    "prepare: two kinds of records": Case(lambda b: b.prepare(
        RIGHT + lines({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})),
        "~/in.jsonl, line 41: field 'messages' where the first record has prompt and response; prepare the two kinds apart"),
    "prepare: a turn with more in it": Case(lambda b: b.prepare(
        lines({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": "x"}]})),
        "~/in.jsonl, line 1: turn 2 of field 'messages' has 'name' beside role and content, which a prepared record does not keep; "
        "leave it out, or read the file itself"),
    "prepare: the second file is broken": Case(lambda b: b.prepare(RIGHT, f"--test={b.write('t.jsonl', b'[]')}"),
        f"~/t.jsonl: is a JSON array; {WANTED}"),
    "prepare: messages beside a pair": Case(lambda b: b.prepare(lines(
        {"messages": [{"role": "user", "content": "w1"}], "chosen": "w2", "rejected": "w3"}), kind="preferences"),
        "~/in.jsonl, line 1: a prepared pair has no 'messages', only prompt, chosen and rejected; leave them out, or read the file itself"),
    "prepare: the second file is none": Case(lambda b: b.prepare(RIGHT, f"--test={b / 'none'}"), "--test=~/none: no such file"),
    "prepare: a pair without its other side": Case(lambda b: b.prepare(
        lines({"prompt": "w1", "chosen": "w2"}), kind="preferences"),
        "~/in.jsonl, line 1: no field 'rejected' (its fields: chosen, prompt); see data.fields"),
    "prepare: a transcript that is none": Case(lambda b: b.prepare(lines({"chosen": "a", "rejected": "b"}), kind="hh"),
        "~/in.jsonl, line 1: field 'chosen' has no '\\n\\nAssistant:' in it; HH-RLHF transcripts do"),
    "prepare: a kind that is none": Case(lambda b: b.prepare(kind="parquet"),
        "argument --kind: invalid choice: 'parquet' (choose from 'demonstrations', 'preferences', 'hh') (see irl_jax prepare --help)"),
    "prepare: records that are a folder": Case(lambda b: ["prepare", "--kind=hh", f"--data={b.path}", f"--out={b / 'out'}"],
        f"--data=~: is a folder; {WANTED}"),
    "prepare: out is there": Case(lambda b: (b.write("out/demonstrations/1.0.0/x", "x"), b.prepare())[1],
        "--out=~/out: ~/out/demonstrations/1.0.0 is there already; choose another, or remove it"),
    "prepare: out is a file": Case(lambda b: (b.write("out", "x"), b.prepare())[1], "--out=~/out: is a file; give a folder"),
    "prepare: out below a file": Case(lambda b: (b.write("o", "x"), b.prepare(out="o/out"))[1], "--out=~/o/out: ~/o is no folder"),
    "prepare: out in folders that are not there": Case(lambda b: b.prepare(b"{", out="a/b/c"),
        "~/in.jsonl, line 1: not JSON (… at column 2)"),
    "prepare: out is a loop of links": Case(lambda b: (link(b, "out", "out"), b.prepare())[1], "--out=~/out: ~/out is no folder"),
    "prepare: out is a store": Case(lambda b: ["prepare", "--kind=hh", f"--data={b.write('in', RIGHT)}", "--out=gs://bucket/x"],
        "--out=gs://bucket/x: must be a folder of this machine; copy it to the store afterwards"),
    "prepare: out is empty": Case(lambda b: ["prepare", "--kind=hh", f"--data={b.write('in', RIGHT)}", "--out="],
        "--out: is empty; name a folder"),
    "prepare: fields that say nothing": Case(lambda b: b.prepare(RIGHT, "--fields=response"),
        "--fields=response: write it as response=answer,...: a field's name here, and its name in the file"),
    "prepare: a field that is none": Case(lambda b: b.prepare(RIGHT, "--fields=answer=response"),
        "--fields=answer=response: there is no field 'answer' here; there are chosen, prompt, rating, rejected, response, text"),
    "prepare: a field twice": Case(lambda b: b.prepare(RIGHT, "--fields=response=a,response=b"),
        "--fields=response=a,response=b: the field 'response' is given twice; which one?"),
    "prepare: a field that no record has": Case(lambda b: b.prepare(RIGHT, "--fields=response=answer"),
        "~/in.jsonl, line 1: no field 'answer' (its fields: prompt, response); see data.fields"),
    "prepare: a full disk": Case(lambda b: b.prepare(RIGHT * 60),
        "~/out/demonstrations/1.0.0: cannot be written (…); what was there before is whole: make room and start the same command again",
        limit=16),
}  # fmt: skip

SHOWN = {  # the verb config
    "config: a file that breaks": Case(lambda b: ["config", f"--config={b.write('c.py', get_config('raise KeyError(3)'))}"],
        "~/c.py, line 4: KeyError: 3"),
    "config: a file that leaves": Case(lambda b: ["config", f"--config={b.write('c.py', get_config('raise SystemExit(0)'))}"],
        "~/c.py, line 4: SystemExit: 0"),
    "config: a key that is none": Case(lambda b: ["config", "--config.sft.stesp=3"],
        "unknown config key 'sft.stesp'; did you mean 'sft.steps'?"),
    "config: a key twice": Case(lambda b: ["config", "--config.seed=1", "--config.seed=2"],
        "--config.seed: given twice, as 1 and as 2; which one?"),
    "config: two at once": Case(lambda b: ["config", "--markdown", f"--workdir={b.begun()}"],
        "config: --markdown, --workdir and --config exclude each other (a run's own config takes no overrides)"),
    "config: a run's with overrides": Case(lambda b: ["config", f"--workdir={b.begun()}", "--config.seed=3"],
        "config: --markdown, --workdir and --config exclude each other (a run's own config takes no overrides)"),
    "config: a workdir that is none": Case(lambda b: ["config", f"--workdir={b.path}"],
        "~: not a workdir (no config.json there); give the --workdir of a run"),
    "config: a workdir that is damaged": Case(lambda b: ["config", f"--workdir={replaced(b.begun(), 'config.json', b'[')}"],
        "~/w/config.json: broken JSON (…); bring the run's own back, or choose another --workdir"),
    "config: a number beyond all in a file": Case(lambda b:
        ["config", f"--config={b.write('c.py', get_config('c.policy.beta = 10**400'))}"],
        "~/c.py, line 4: int too large to convert to float"),
}  # fmt: skip

_LIES = ", where only its own files belong; choose a place outside"

OUTS = {  # --out of every verb that has one
    "out: score over a run's config": Case(lambda b: [*b.of_workdir("score", workdir=b.workdir())[:-1],
        f"--out={b / 'w/config.json'}"], f"--out=~/w/config.json: lies in the workdir ~/w{_LIES}"),
    "out: score into a run": Case(lambda b: [*b.score()[:3], f"--out={b.workdir() / 'sft/new.jsonl'}"],
        f"--out=~/w/sft/new.jsonl: lies in the workdir ~/w{_LIES}"),
    "out: generate into a run by a link": Case(lambda b: [*b.generate()[:3], f"--out={link(b, 'l', b.workdir() / 'config.json')}"],
        f"--out=~/l: lies in the workdir ~/w{_LIES}"),
    "out: generate into a run by a link to its folder": Case(lambda b: [*b.generate()[:3], f"--out={link(b, 'l', b.begun()) / 'new'}"],
        f"--out=~/l/new: lies in the workdir ~/w{_LIES}"),
    "out: score into a damaged run": Case(lambda b: [*b.score()[:3], f"--out={replaced(b.begun(), 'config.json', b'[') / 'new'}"],
        f"--out=~/w/new: lies in the workdir ~/w{_LIES}"),
    "out: score over a model's tokenizer": Case(lambda b: [*b.score()[:3], f"--out={b.model() / 'tokenizer.json'}"],
        f"--out=~/m/tokenizer.json: lies in the model folder ~/m{_LIES}"),
    "out: score over a sweep's note": Case(lambda b: [*b.score()[:3], f"--out={b.swept({'members': []}) / 'sweep.json'}"],
        f"--out=~/s/sweep.json: lies in the sweep ~/s{_LIES}"),
    "out: score over a hard link to the records": Case(lambda b: (b.score(), os.link(b / "in.jsonl", b / "same"), [
        *b.score()[:3], f"--out={b / 'same'}"])[2], "--out=~/same: is the file of --data, which would be replaced; choose another"),
    "out: score among a run's prepared records": Case(lambda b: (b.write("t/x/1.0.0/data", "x"), [*b.of_workdir("score", workdir=b.edit(
        b.workdir() / "config.json", lambda c: c["config"]["data"].update(tfds_data_dir=str(b / "t"))))[:-1],
        f"--out={b / 't/x/new'}"])[1], "--out=~/t/x/new: lies in the folder of data.tfds_data_dir of ~/w, ~/t; choose a place outside"),
    "out: generate over a run's records": Case(lambda b: (b.write("d.jsonl", RIGHT), [*b.of_workdir("generate", workdir=b.edit(
        b.workdir() / "config.json", lambda c: c["config"]["data"].update(source=str(b / "d.jsonl"))))[:-1],
        f"--out={b / 'd.jsonl'}"])[1], "--out=~/d.jsonl: is the file of data.source of ~/w, which would be replaced; choose another"),
    "out: generate where nothing can be": Case(lambda b: [*b.generate()[:3], "--out=/proc/new.jsonl"],
        "--out=/proc/new.jsonl: cannot be written (…); choose another place or a shorter name"),
    "out: score to a link to nothing": Case(lambda b: [*b.score()[:3], f"--out={link(b, 'o', 'none/o')}"],
        "--out=~/o: must be a plain file, and is something else"),
    "out: export into a model": Case(lambda b: ["export", f"--workdir={b.finished}", "--role=sft", f"--out={b.model() / 'new'}"],
        f"--out=~/m/new: lies in the model folder ~/m{_LIES}"),
    "out: export where nothing can be": Case(lambda b: ["export", f"--workdir={b.finished}", "--role=sft", "--out=/proc/new"],
        "--out=/proc/new: cannot be written (…); choose another place or a shorter name"),
    "out: prepare into a run": Case(lambda b: (b.begun(), b.prepare(out="w"))[1], f"--out=~/w: lies in the workdir ~/w{_LIES}"),
    "out: compare into a run": Case(lambda b: ["compare", str(b.begun(results=NOTHING)), f"--out={b / 'w/page'}"],
        f"--out=~/w/page: lies in the workdir ~/w{_LIES}"),
    "out: compare to a link to nothing": Case(lambda b: ["compare", str(b.begun(results=NOTHING)), f"--out={link(b, 'o', 'none')}"],
        "--out=~/o: ~/o is no folder"),
    "out: compare where a folder has the page's name": Case(lambda b: (b.write("o/compare.html/x", ""), [
        "compare", str(b.begun(results=NOTHING)), f"--out={b / 'o'}"])[1], "--out=~/o: compare.html is a folder there; choose another"),
    "out: aot into a run": Case(lambda b: ["aot", "--topology=v5e:4x4", f"--out={b.begun()}"],
        f"--out=~/w: lies in the workdir ~/w{_LIES}"),
}  # fmt: skip

COMPARED = {
    "compare: a folder that is no run's": Case(lambda b: ["compare", str(b.path), f"--out={b / 'out'}"],
        "~: not a workdir (no config.json there); compare takes folders of runs"),
    "compare: a run without results": Case(lambda b: ["compare", str(b.begun()), f"--out={b / 'out'}"],
        "~/w: no results.json yet, which the stage `evaluate` writes; finish the run first"),
    "compare: a run twice": Case(lambda b: ["compare", *[str(b.begun(results=NOTHING))] * 2, f"--out={b / 'out'}"],
        "~/w: the same config and seed (0) as ~/w; give each run once"),
    "compare: results cut short": Case(lambda b: ["compare", str(b.begun(results=NOTHING[:-9])), f"--out={b / 'out'}"],
        "~/w/results.json: broken JSON (…); remove it and the done.json of the stage that writes it, and start the same command again"),
    "compare: --out that is a file": Case(lambda b: ["compare", str(b.begun(results=NOTHING)), f"--out={b.write('out', 'x')}"],
        "--out=~/out: is a file; give a folder"),
}  # fmt: skip

CASES = COMPARED | OUTS | STREAMS | STATUS | SWEEPS | PREPARES | SHOWN
