"""Malformed config files, keys, workdirs and flags, one a row: how it is made, the command line, and the line that is said of it."""

from __future__ import annotations

import json
import os
import shutil

from malformed_box import DEEP, GOOD, NOTHING, RIGHT, Box, Case, get_config, link, replaced, without

CONFIGS = {
    "a config that refuses": Case(lambda b: b.config(get_config("raise ValueError('only on Tuesdays')")),
        "~/c.py, line 4: only on Tuesdays"),
    "a config that breaks": Case(lambda b: b.config(get_config("return {}['steps']")), "~/c.py, line 4: KeyError: 'steps'"),
    "a config that divides by zero": Case(lambda b: b.config(get_config("c.seed = 1 // 0")),
        "~/c.py, line 4: ZeroDivisionError: integer division or modulo by zero"),
    "a config that leaves": Case(lambda b: b.config(get_config("raise SystemExit(0)")), "~/c.py, line 4: SystemExit: 0"),
    "a config that imports what is not there": Case(lambda b: b.config("import no_such_module\n"),
        "~/c.py, line 1: ModuleNotFoundError: No module named 'no_such_module'"),
    "a config that calls itself": Case(lambda b: b.config(get_config("return get_config()")),
        "~/c.py, line …: maximum recursion depth exceeded…"),
    "a config that is no Python": Case(lambda b: b.config("def get_config(:\n"), "~/c.py, line 1: invalid syntax"),
    "a config whose neighbour is no Python": Case(lambda b: (b.write("beside.py", "\n\nx = ("), b.config("import beside\n"))[1],
        "~/beside.py, line 3: …"),
    "a config file that is no UTF-8": Case(lambda b: b.config(b"x = '\xff'\n"), "~/c.py, line 1: (unicode error) …"),
    "a config with a NUL byte": Case(lambda b: b.config(b"x = 1\x00\n"), "~/c.py, line 1: source code string cannot contain null bytes"),
    "a config that is empty": Case(lambda b: b.config(""), "~/c.py: has no get_config() function"),
    "a config whose get_config is none": Case(lambda b: b.config("get_config = 3\n"), "~/c.py: has no get_config() function"),
    "a config that returns nothing": Case(lambda b: b.config("def get_config(name=''):\n    pass\n"),
        "~/c.py: get_config() must return the ConfigDict of irl_jax.config.default(), changed as needed"),
    "a config of another type": Case(lambda b: b.config(get_config("c.sft.steps = '7'")), "~/c.py, line 4: Could not override…"),
    "a config that is not a number": Case(lambda b: b.config(get_config("c.policy.beta = float('nan')")),
        "config.policy.beta = nan: must be a finite number, and at most 1e+30"),
    "a config beyond all numbers": Case(lambda b: b.config(get_config("c.sft.learning_rate = float('inf')")),
        "config.sft.learning_rate = inf: must be a finite number, and at most 1e+30"),
    "a config of nothing": Case(lambda b: b.config(get_config("c.seed = None")), "config.seed: None must be a whole number"),
    "a config with a NUL in a path": Case(lambda b: b.config(get_config("c.data.source = 'a\\0b'")),
        "config.data.source = 'a\\x00b': must be text without control characters"),
    "a config with words for numbers": Case(lambda b: b.config(get_config("c.eval.best_of = (1, 'two')")),
        "config.eval.best_of: 'two' must be a whole number"),
    "a config of three words": Case(lambda b: b.config(get_config("c.data.prompt_words = (1, 2, 3)")),
        "config.data.prompt_words = (1, 2, 3): two numbers are needed, 1 or more, the smaller one first"),
    "a config that is JSON": Case(lambda b: b.config('{"seed": 3}', name="c.json"),
        "--config=~/c.json: must be a .py file with a get_config(); a workdir's config.json is a run's record, which nothing runs"),
    "a config that is a workdir's": Case(lambda b: ["run", f"--workdir={b / 'w'}", f"--config={b.workdir() / 'config.json'}"],
        "--config=~/w/config.json: must be a .py file with a get_config(); a workdir's config.json is a run's record, which nothing "
        "runs"),
    "a config that is a folder": Case(lambda b: ["aot", f"--config={b.path}", "--topology=v5e:4x4"],
        "--config=~: is no file that can be read"),
    "a config file that is a loop of links": Case(lambda b: ["run", f"--workdir={b / 'w'}", f"--config={link(b, 'c.py', 'c.py')}"],
        "--config=~/c.py: is no file that can be read"),
    "aot: a config that breaks": Case(lambda b:
        ["aot", "--topology=v5e:4x4", f"--config={b.write('c.py', get_config('c.seed = [][0]'))}"],
        "~/c.py, line 4: IndexError: list index out of range"),
}  # fmt: skip

KEYS = {  # one or two of every section
    "seed": ("seed=99999999999999999999", "--config.seed=99999999999999999999: takes a whole number of at most 63 bits"),
    "seed, of 32 bits": ("seed=2147483648", "config.seed = 2147483648: must be a finite number, and at most 2,147,483,647"),
    "variants": ("variants=policy/a",
        'config.variants: cannot read "policy/a"; write "GROUP/NAME = RECIPE key=value ..." with GROUP one of reward, policy, '
        'adversarial, dpo, spin, rejection, and NAME of up to 100 letters (a-z), digits, dots and dashes, no dot at its end'),
    "variants, out of the workdir": ("variants=policy/.. = init_sft",
        'config.variants: cannot read "policy/.. = init_sft"; write "GROUP/NAME = RECIPE key=value ..." with GROUP one of reward, '
        'policy, adversarial, dpo, spin, rejection, and NAME of up to 100 letters (a-z), digits, dots and dashes, no dot at its end'),
    "variants, the name of a control": ("variants=reward/length = init_sft",
        'config.variants: "reward/length = init_sft": length is the name of something else in every run; choose another name'),
    "variants, the name of a file": ("variants=policy/done.json = init_sft",
        'config.variants: "policy/done.json = init_sft": done.json is the name of something else in every run; choose another name'),
    "variants, the same but for capitals": ("variants=policy/a = init_sft,policy/A = init_sft",
        "config.variants: the name policy/a is taken twice (capitals do not count)"),
    "variants, a name too long": (f"variants=policy/{'a' * 300} = init_sft",
        'config.variants: cannot read '
        '"policy/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'
        'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'
        'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa = init_sft"; write "GROUP/NAME = RECIPE key=value ..." with GROUP '
        'one of reward, policy, adversarial, dpo, spin, rejection, and NAME of up to 100 letters (a-z), digits, dots and dashes, no dot at its end'),
    "variants, a setting out of range": ("variants=policy/a = init_sft policy.beta=-1",
        "config.variants, policy/a: config.policy.beta = -1.0: must not be negative"),
    "data.kind": ("data.kind=parquet", "config.data.kind = 'parquet': must be one of pairs, continuations"),
    "data.heldout_fraction": ("data.heldout_fraction=1e30", "config.data.heldout_fraction = 1e+30: must be at least 0 and below 1"),
    "data.max_prompt_tokens": ("data.max_prompt_tokens=0", "config.data.max_prompt_tokens = 0: must be positive"),
    "data.max_records": ("data.max_records=-1", "config.data.max_records = -1: must not be negative"),
    "data.fields": ("data.fields.prompt=a\x00b", "config.data.fields.prompt = 'a\\x00b': must be text without control characters"),
    "data.prompt_words": ("data.prompt_words=5,2",
        "config.data.prompt_words = (5, 2): two numbers are needed, 1 or more, the smaller one first"),
    "data.streaming": ("data.streaming=true",
        "config.data.streaming: data.source = 'testbed' is not read by random access; prepare it (python -m irl_jax prepare --help) and "
        "name it as tfds:NAME"),
    "data.streaming_records": ("data.streaming_records=0", "config.data.streaming_records = 0: must be positive"),
    "log": ("log.wandb=../a", "config.log.wandb = '../a': a project's name has at most 128 characters and none of / \\ # ? % :"),
    "log.tensorboard": ("log.tensorboard=maybe", "--config.log.tensorboard=maybe: takes true or false"),
    "data.testbed": ("data.testbed.noise=1e30", "config.data.testbed.noise = 1e+30: must lie between 0 and 1"),
    "data.testbed.kinds": ("data.testbed.kinds=1.5", "config.data.testbed.kinds = 1.5: must lie between 0 and 1"),
    "data.testbed, huge": ("data.testbed.demonstrations=2147483647",
        "config.data.testbed.demonstrations = 2147483647: must be at most 10,000,000"),
    "model": ("model.width=-96", "config.model.width = -96: must be positive"),
    "model, huge": ("model.num_layers=100000", "config.model.num_layers = 100000: must be at most 1,024"),
    "model, a product that is huge": ("model.width=1048576",
        "config.model: num_layers, width and mlp_width make a model of up to 1e+13 parameters; they must be at most 1e+12"),
    "model.architecture": ("model.architecture=../../gpt2", "config.model.architecture = '../../gpt2': must be one of gpt2, llama, mistral, qwen2, qwen3, "
        "gemma, gemma2, gemma3_text, phi3"),
    "adapter": ("adapter.alpha=-inf", "--config.adapter.alpha=-inf: takes a finite number"),
    "mesh": ("mesh.fsdp=0", "config mesh.fsdp = 0: must be at least 1"),
    "pretrain": ("pretrain.learning_rate=nan", "--config.pretrain.learning_rate=nan: takes a finite number"),
    "sft": ("sft.batch_size=1e30", "--config.sft.batch_size=1e30: takes a whole number of at most 63 bits"),
    "sft.b2": ("sft.b2=1", "config.sft.b2 = 1.0: must be at least 0 and below 1"),
    "sample": ("sample.rows=0", "config.sample.rows = 0: must be positive"),
    "sample, huge": ("sample.eval_samples=1000000000", "config.sample.eval_samples = 1000000000: must be at most 1,048,576"),
    "sample.temperature": ("sample.temperature=1e-40", "config.sample.temperature = 1e-40: must be at least 0.001"),
    "sample.top_p": ("sample.top_p=1.5", "config.sample.top_p = 1.5: must be at most 1"),
    "reward": ("reward.ensemble=-3", "config.reward.ensemble = -3: must be positive"),
    "reward.recipes": ("reward.recipes=init_sft,../../etc",
        "config.reward.recipes: unknown '../../etc'; choose from init_sft, init_demo, sft_demo, preference"),
    "policy": ("policy.clip_ratio=0", "config.policy.clip_ratio = 0.0: must be positive"),
    "policy.entropy": ("policy.entropy=-1e30", "config.policy.entropy = -1e+30: must not be negative"),
    "adversarial": ("adversarial.max_accuracy=2", "config.adversarial.max_accuracy = 2.0: must lie between 0 and 1"),
    "dpo": ("dpo.beta=-0.1", "config.dpo.beta = -0.1: must be positive"),
    "spin": ("spin.iterations=0", "config.spin.iterations = 0: must be positive"),
    "rejection": ("rejection.samples=1", "config.rejection.samples = 1: must be at least 2, for samples of one prompt are compared"),
    "golden": ("golden.kind=__import__('os')",
        'config.golden.kind = "__import__(\'os\')": must be one of testbed, classifier, hf_reward, none'),
    "golden.preserves": ("golden.preserves=response", "config.golden.preserves = 'response': must be one of '', prompt"),
    "golden.window_words": ("golden.window_words=0", "config.golden.window_words = 0: must be positive"),
    "eval": ("eval.best_of=()", "config.eval.best_of = (): at least one n is needed, and every n must be at least 1"),
    "eval, more than there are samples": ("eval.best_of=1,128",
        "config.eval.best_of = (1, 128): no n is above 1 and at most sample.eval_samples = 64; name such an n, or raise eval_samples"),
    "eval, a call": ("eval.best_of=(__import__('os').system('true'),)",
        "--config.eval.best_of=(__import__('os').system('true'),): takes values separated by commas, such as a,b,c"),
    "checkpoint": ("checkpoint.keep=0", "config.checkpoint.keep = 0: must be positive"),
    "profile": ("profile.first=-1", "config.profile.first = -1: must be positive"),
    "a key that is none": ("policy.__class__=x", "unknown config key 'policy.__class__'; did you mean 'policy.steps'?"),
}
KEY_CASES = {f"--config.{name}": Case(lambda b, setting=setting: b.testbed(setting), says) for name, (setting, says) in KEYS.items()}

WORKDIRS = {
    "config.json cut short": Case(lambda b: b.of_workdir("score", workdir=replaced(b.workdir(), "config.json", '{"config": {"seed')),
        "~/w/config.json: broken JSON (…); bring the run's own back, or choose another --workdir"),
    "config.json that is a list": Case(lambda b: b.of_workdir("score", workdir=replaced(b.workdir(), "config.json", "[1, 2]")),
        "~/w/config.json: has no object 'config', which irl_jax writes there; bring the run's own back, or choose another --workdir"),
    "config.json nested without end": Case(lambda b: b.of_workdir("generate", workdir=replaced(b.workdir(), "config.json", DEEP)),
        "~/w/config.json: broken JSON (…); bring the run's own back, or choose another --workdir"),
    "config.json with a key too many": Case(lambda b: b.of_workdir(
        "score", workdir=b.edit(b.workdir() / "config.json", lambda c: c["config"].update(run_me="evil.py"))),
        "~/w/config.json: key run_me is unknown to this version; the workdir was written by another version of irl_jax"),
    "config.json of another type": Case(lambda b: b.of_workdir(
        "generate", workdir=b.edit(b.workdir() / "config.json", lambda c: c["config"]["adapter"].update(rank="8"))),
        "~/w/config.json: a key of another type: …"),
    "config.json out of range": Case(lambda b: b.of_workdir(
        "score", workdir=b.edit(b.workdir() / "config.json", lambda c: c["config"]["adapter"].update(rank=-8))),
        "~/w/config.json: config.adapter.rank = -8: must not be negative"),
    "config.json with a list for a number": Case(lambda b: b.of_workdir(
        "score", workdir=b.edit(b.workdir() / "config.json", lambda c: c["config"].update(seed=[1]))),
        "~/w/config.json: a key of another type: …"),
    "config.json with a number for a section": Case(lambda b: b.of_workdir(
        "score", workdir=b.edit(b.workdir() / "config.json", lambda c: c["config"].update(adapter=3))),
        "~/w/config.json: key adapter.alpha is missing; the workdir was written by another version of irl_jax"),
    "config.json whose variant leads out": Case(lambda b: b.of_workdir("export", "--role=policy/..", workdir=b.edit(
        b.workdir() / "config.json", lambda c: c["config"].update(variants=["policy/.. = init_sft"]))),
        'config.variants: cannot read "policy/.. = init_sft"; write "GROUP/NAME = RECIPE key=value ..." with GROUP one of reward, '
        'policy, adversarial, dpo, spin, rejection, and NAME of up to 100 letters (a-z), digits, dots and dashes, no dot at its end'),
    "config.json that names a model that is gone": Case(lambda b: b.of_workdir("export", "--role=sft", workdir=b.edit(
        b.workdir() / "config.json", lambda c: c["config"]["model"].update(path="/nowhere/m"))),
        "~/w: its config.json names model.path = '/nowhere/m' (a relative path starts at the current folder): /nowhere/m: no such "
        "model folder; if it has moved, name its folder by --base"),
    "config.json that is a folder": Case(lambda b: b.of_workdir("score", workdir=(
        without(b.workdir(), "config.json"), (b / "w/config.json").mkdir(), b / "w")[2]),
        "~/w: not a workdir (no config.json there); give the --workdir of a run"),
    "config.json that is a loop of links": Case(lambda b: b.of_workdir("score", workdir=link(
        Box(without(b.workdir(), "config.json"), b.base, b.finished), "config.json", "config.json").parent),
        "~/w: not a workdir (no config.json there); give the --workdir of a run"),
    "run: config.json cut short": Case(lambda b: b.run(data__source=RIGHT, workdir=replaced(b.workdir(), "config.json", "{")),
        "~/w/config.json: broken JSON (…); bring the run's own back, or choose another --workdir"),
    "run: config.json of another config": Case(lambda b: b.run(data__source=RIGHT, workdir=b.workdir()),
        "~/w: belongs to another config: …; choose another --workdir or the same config"),
    "inputs.json of another shape": Case(lambda b: b.of_workdir("score", workdir=replaced(b.workdir(), "inputs.json", '{"files": 3}')),
        "~/w/inputs.json: has no object 'files', which irl_jax writes there; bring the run's own back, or choose another --workdir"),
    "inputs.json with a hash that is none": Case(lambda b: b.of_workdir("score", workdir=replaced(b.workdir(), "inputs.json", json.dumps(
        {"files": {"model.path": {"config.json": "0"}}, "records": {}}))),
        "~/w/inputs.json: 'model.path' is no object of notes with a 'sha256'; bring the run's own back, or choose another --workdir"),
    "inputs.json of another model": Case(lambda b: b.of_workdir("score", workdir=replaced(b.workdir(), "inputs.json", json.dumps(
        {"files": {"model.path": {"config.json": {"sha256": "0" * 64}}}, "records": {}}))),
        "@/config.json: not the file that this workdir was begun with (~/w/inputs.json has its SHA-256); bring the run's own files back, "
        "name their folder by --base or choose another --workdir"),
    "a base that cannot be checked": Case(lambda b: b.of_workdir("generate", f"--base={b.base}"),
        "--base=@: … has no inputs.json, so that nothing tells whether it is the run's model"),
    "a base that is nowhere": Case(lambda b: b.of_workdir("export", "--role=sft", "--base=/nowhere/m"),
        "--base=/nowhere/m: /nowhere/m: no such model folder"),
    "a base of a run from scratch": Case(lambda b: b.testbed()[:2] + ["--stages=pretrain", f"--base={b.base}"],
        "--base=@: this run began from scratch, so that no base model can have moved"),
    "a revision of no model": Case(lambda b: b.testbed("model.revision=main"),
        "config.model.revision: needs model.path, the hub model that has the revision"),
    "a revision of no judge": Case(lambda b: b.testbed("golden.revision=main"),
        "config.golden.revision: only golden.kind = 'hf_reward' has a model; leave it empty"),
    "a revision of no start": Case(lambda b: b.testbed("reward.start_revision=main"),
        "config.reward.start_revision: needs reward.start, the hub model that has the revision"),
    "a revision of a folder": Case(lambda b: b.run("model.revision=main", data__source=RIGHT),
        "@: is a folder, which has no revision 'main'; leave the revision out, or name a hub model"),
    "leaves that are gone": Case(lambda b: b.of_workdir("export", "--role=sft", workdir=(
        w := b.workdir(), shutil.rmtree(w / "sft" / "leaves"))[0]),
        "~/w: nothing is trained under 'sft' yet; run that stage first (--stages=sft)"),
    "a role that leads out": Case(lambda b: b.of_workdir("export", "--role=../../etc"),
        "--role: unknown role '../../etc'; one of init, sft, reward/init_sft, reward/init_demo, reward/sft_demo, reward/preference, "
        "policy/init_sft"),
    "a reward that leads out": Case(lambda b: b.of_workdir("score", "--reward=../sft"),
        "--reward: unknown reward '../sft'; one of init_sft, init_demo, sft_demo, preference, log_ratio"),
    "a workdir that is a file": Case(lambda b: b.testbed(workdir=b.write("w", "x")), "~/w: is a file; --workdir takes a folder"),
    "a workdir that is a loop of links": Case(lambda b: b.testbed(workdir=link(b, "w", "w")),
        "~/w: is a link to nothing; --workdir takes a folder"),
    "a workdir that is somebody's": Case(lambda b: b.testbed(workdir=b.write("w/thesis.tex", "x").parent),
        "~/w: not empty and not a workdir (no config.json there); choose another --workdir"),
    "a workdir whose lock is a link": Case(lambda b: (w := without(b.begun(), ".lock"), b.write("thesis.tex", "x"),
        os.symlink("../thesis.tex", w / ".lock"), b.testbed(workdir=w))[3],
        "~/w/.lock: is a link, where irl_jax has a file of its own; remove it"),
    "a workdir whose lock is a link to nothing": Case(lambda b: (w := without(b.begun(), ".lock"),
        os.symlink(b / "thesis.tex", w / ".lock"), b.testbed(workdir=w))[2],
        "~/w/.lock: is a link, where irl_jax has a file of its own; remove it"),
    "a workdir whose lock is a pipe": Case(lambda b: (w := without(b.begun(), ".lock"), os.mkfifo(w / ".lock"), b.testbed(workdir=w))[2],
        "~/w/.lock: is no plain file, and irl_jax has one of its own there; remove it"),
    "a workdir below a file": Case(lambda b: b.testbed(workdir=b.write("w", "x") / "deeper"),
        "~/w/deeper: cannot write the workdir there: …"),
    "a workdir that cannot be made": Case(lambda b: b.testbed(workdir="/proc/irl_jax/w"),
        "/proc/irl_jax/w: cannot write the workdir there: …"),
    "a workdir of another store": Case(lambda b: b.testbed(workdir="s3://bucket/w"),
        "s3://bucket/w: no way to reach s3://; the object store that is known is gs://"),
    "a workdir in use": Case(lambda b: b.testbed(workdir=b.used()),
        "~/w: another irl_jax process is using this workdir; wait for it or choose another"),
    "results.json cut short": Case(lambda b: b.testbed(stages="report", workdir=b.begun(results='{"policies": {')),
        "~/w/results.json: broken JSON (…); remove it and the done.json of the stage that writes it, and start the same command again"),
    "results.json that is a list": Case(lambda b: b.testbed(stages="report", workdir=b.begun(results="[]")),
        "~/w/results.json: has no object 'policies', which irl_jax writes there; remove it and the done.json of the stage that writes "
        "it, and start the same command again"),
    "results.json with text for numbers": Case(lambda b: b.testbed(stages="report", workdir=b.begun(results='{"policies": "x"}')),
        "~/w/results.json: has no object 'policies', which irl_jax writes there; remove it and the done.json of the stage that writes "
        "it, and start the same command again"),
    "results.json that is gone": Case(lambda b: b.testbed(stages="report", workdir=b.begun()),
        "~/w/results.json: no such file; run the stage that writes it"),
    "report.json with lists of two lengths": Case(lambda b: b.testbed(stages="report", workdir=b.begun(
        results=NOTHING, evaluate__report='{"histograms": {}, "scatter": {"x": {"length": [1, 2], "reward": [3]}}}')),
        "~/w/evaluate/report.json: the lists of scatter.x must be of one length; remove it and the done.json of the stage that writes it, "
        "and start the same command again"),
    "report.json with text for a list": Case(lambda b: b.testbed(stages="report", workdir=b.begun(
        results=NOTHING, evaluate__report='{"histograms": {"x": {"sft": {"counts": "1", "edges": [0, 1]}}}, "scatter": {}}')),
        "~/w/evaluate/report.json: has no list 'histograms.x.sft.counts', which irl_jax writes there; remove it and the done.json of the "
        "stage that writes it, and start the same command again"),
    "report.json cut short": Case(lambda b: b.testbed(stages="report", workdir=b.begun(
        results=NOTHING, evaluate__report="[")),
        "~/w/evaluate/report.json: broken JSON (…); remove it and the done.json of the stage that writes it, and start the same "
        "command again"),
    "metrics.jsonl that is no JSON": Case(lambda b: b.testbed(stages="report", workdir=replaced(b.begun(
        results=NOTHING, evaluate__report=NOTHING), "sft/metrics.jsonl", '{"step": 1}\n{"step"\n')),
        "~/w/sft/metrics.jsonl: broken JSON lines (…); remove the file, of which only the report's curves are made"),
    "metrics.jsonl without steps": Case(lambda b: b.testbed(stages="report", workdir=replaced(b.begun(
        results=NOTHING, evaluate__report=NOTHING), "sft/metrics.jsonl", '{"loss": 1}\n')),
        "~/w/sft/metrics.jsonl: a line without its step; remove the file, of which only the report's curves are made"),
    "metrics.jsonl with text for a number": Case(lambda b: b.testbed(stages="report", workdir=replaced(b.begun(
        results=NOTHING, evaluate__report=NOTHING), "sft/metrics.jsonl", '{"step": 1, "loss": "low"}\n')),
        "~/w/sft/metrics.jsonl: a line without a number as 'loss'; remove the file, of which only the report's curves are made"),
    "metrics.jsonl with a number of hundreds of digits": Case(lambda b: b.testbed(stages="report", workdir=replaced(b.begun(
        results=NOTHING, evaluate__report=NOTHING), "sft/metrics.jsonl", f'{{"step": 1, "loss": {"9" * 400}}}\n')),
        "~/w/sft/metrics.jsonl: a line without a number as 'loss'; remove the file, of which only the report's curves are made"),
    "done.json that is no JSON": Case(lambda b: b.testbed(stages="report", workdir=b.begun(
        results=NOTHING, sft__done="\0")),
        "~/w/sft/done.json: broken JSON (…); remove it and the done.json of the stage that writes it, and start the same command again"),
    "done.json of another shape": Case(lambda b: b.testbed(stages="report", workdir=b.begun(
        results=NOTHING, sft__done='{"timing": 3}')),
        "~/w/sft/done.json: has no object 'timing', which irl_jax writes there; remove it and the done.json of the stage that writes "
        "it, and start the same command again"),
    "a workdir that is none": Case(lambda b: b.of_workdir("generate", workdir=b / "nowhere"),
        "~/nowhere: not a workdir (no config.json there); give the --workdir of a run"),
}  # fmt: skip

FLAGS = {
    "a verb that is none": Case(lambda b: ["evaluate"],
        "unknown verb 'evaluate'; did you mean 'generate'?; the verbs are run, status, compare, config, prepare, generate, score, "
        "export, aot"),
    "a flag with a terminal's commands": Case(lambda b: ["run", "--workdir=w", "--\x1b[31mred"],
        "run: unknown argument '--\\x1b[31mred'; its flags are --help, --config, --workdir, --stages, --base, --sweep, --multihost, "
        "--coordinator, --processes, --process, --patience, --compilation_cache"),
    "samples beyond all memory": Case(lambda b: b.generate(GOOD, "--samples=1000000000000"),
        "argument --samples: 1000000000000 is out of range (see irl_jax generate --help)"),
    "a temperature that is not a number": Case(lambda b: b.generate(GOOD, "--temperature=nan"),
        "argument --temperature: nan is out of range: 0, or from 0.001 to 1000 (see irl_jax generate --help)"),
    "a temperature of almost nothing": Case(lambda b: b.generate(GOOD, "--temperature=1e-40"),
        "argument --temperature: 1e-40 is out of range: 0, or from 0.001 to 1000 (see irl_jax generate --help)"),
    "top_p above 1": Case(lambda b: b.generate(GOOD, "--top_p=1.5"), "argument --top_p: 1.5 is out of range (see irl_jax generate --help)"),
    "top_k of 30 digits": Case(lambda b: b.generate(GOOD, f"--top_k={10**30}"),
        "argument --top_k: 1000000000000000000000000000000 is out of range (see irl_jax generate --help)"),
    "a negative seed": Case(lambda b: b.generate(GOOD, "--seed=-1"), "argument --seed: -1 is out of range (see irl_jax generate --help)"),
    "out is the input": Case(lambda b: [*b.score()[:3], f"--out={b / 'in.jsonl'}"],
        "--out=~/in.jsonl: is the file of --data, which would be replaced; choose another"),
    "out is the input by another name": Case(lambda b: [*b.generate()[:3], f"--out={link(b, 'same', 'in.jsonl')}"],
        "--out=~/same: is the file of --prompts, which would be replaced; choose another"),
    "out is a folder": Case(lambda b: [*b.score()[:3], f"--out={b.path}"], "--out=~: must be a file in a folder that exists"),
    "out is a pipe": Case(lambda b: (os.mkfifo(b / "pipe"), [*b.score()[:3], f"--out={b / 'pipe'}"])[1],
        "--out=~/pipe: must be a plain file, and is something else"),
    "out is the shell's": Case(lambda b: [*b.score()[:3], "--out=/dev/stdout"], "--out=/dev/stdout: must be a plain file, and is something else"),
    "out is a loop of links": Case(lambda b: [*b.score()[:3], f"--out={link(b, 'o', 'o')}"],
        "--out=~/o: must be a plain file, and is something else"),
    "out below a file": Case(lambda b: [*b.score()[:3], f"--out={b / 'in.jsonl' / 'o'}"],
        "--out=~/in.jsonl/o: must be in a folder that exists"),
    "a full disk for generate": Case(lambda b: b.generate(),
        "~/out.jsonl: cannot be written (…); what was there before is whole: make room and start the same command again", limit=16),
    "a full disk for score": Case(lambda b: b.score(),
        "~/out.jsonl: cannot be written (…); what was there before is whole: make room and start the same command again", limit=16),
    "a full disk for export": Case(lambda b: b.of_workdir("export", "--role=sft"),
        "~/out: cannot be written (…); what was there before is whole: make room and start the same command again", limit=16),
    "a full disk for run": Case(lambda b: b.run(data__source=RIGHT),
        "~/w/config.json: cannot be written (…); what was there before is whole: make room and start the same command again", limit=16),
    "export: out is there": Case(lambda b: (b.write("out/thesis.tex", "x"), b.of_workdir("export", "--role=sft"))[1],
        "--out=~/out: is there already and not an empty folder; choose another, or remove it"),
    "export: out is a link to nothing": Case(lambda b: (link(b, "out", "none/x"), b.of_workdir("export", "--role=sft"))[1],
        "--out=~/out: is there already and not an empty folder; choose another, or remove it"),
    "export: shards of no size": Case(lambda b: b.of_workdir("export", "--role=sft", "--max_shard_size=1e30GB"),
        "argument --max_shard_size: '1e30GB' is no size; write it as 5GB, 500MB or 1GiB (see irl_jax export --help)"),
    "export: shards beyond all disks": Case(lambda b: b.of_workdir("export", "--role=sft", f"--max_shard_size={'9' * 400}GB"),
        "argument --max_shard_size: '9999999999999999999999999999999999999999' is no size; write it as 5GB, 500MB or 1GiB (see irl_jax "
        "export --help)"),
    "export: another base": Case(lambda b: b.of_workdir("export", "--role=sft", "--adapter", f"--base={b / 'none'}"),
        "--base=~/none: ~/none: no such model folder"),
    "aot: a chip that is none": Case(lambda b: ["aot", "--topology=v99:1x1"],
        "--topology=v99:1x1: unknown chip 'v99'; write CHIP:SHAPE, such as v5e:4x4 (16 chips), v5e:16x16 (256), v6e:8x8 (64), "
        "v5p:2x4x4 (32, sold as v5p-64)"),
    "aot: a step that is none": Case(lambda b: ["aot", "--topology=v5e:4x4", "--steps=../../sft"],
        "--steps: unknown step '../../sft'; did you mean 'sft'?; one of sft, sample, score, reward, prefill, decode, draw, judge, "
        "advantages, policy"),
    "aot: slices beyond all": Case(lambda b: ["aot", "--topology=v5e:4x4", "--slices=99999999999999999999"],
        "argument --slices: 99999999999999999999 is out of range (see irl_jax aot --help)"),
    "aot: out is a file": Case(lambda b: ["aot", "--topology=v5e:4x4", f"--out={b.write('o', 'x')}"],
        "--out=~/o: is a file; give a folder"),
    "aot: a value out of range": Case(lambda b: ["aot", "--topology=v5e:4x4", "--config.policy.samples=0"],
        "config.policy.samples = 0: must be positive"),
    "aot: a model that is none": Case(lambda b: ["aot", "--topology=v5e:4x4", "--config.data.source=x", "--config.golden.kind=none"],
        "config.model.path: name a Hugging Face folder or hub model for data.source = 'x' (only the testbed initialises from scratch)"),
    "run: hosts without --multihost": Case(lambda b: ["run", f"--workdir={b / 'w'}", "--processes=2"],
        "--coordinator, --processes and --process: need --multihost"),
}  # fmt: skip
