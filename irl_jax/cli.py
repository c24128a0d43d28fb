"""The verbs and their flags.

The user's mistakes are one line on stderr and status 2; a bug of ours keeps its traceback and status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import os
import pathlib
import re
import sys
import traceback

import ml_collections
from ml_collections import ConfigDict

from irl_jax.config import default
from irl_jax.errors import UserError
from irl_jax.overrides import keys_of, nearest, override

VERBS = ("run", "status", "compare", "config", "prepare", "generate", "score", "export", "aot")
OVERRIDE = "--config."


def entry() -> None:
    """The `irl_jax` command."""
    sys.exit(main(sys.argv[1:]))


def main(argv: list[str]) -> int:
    """Runs one verb.

    Args:
      argv: the arguments after the program's name.

    Returns:
      The exit status: 0, 2 for the user's mistake, 130 where interrupted, 141 where nobody reads what it prints.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # its tokenizers need no PyTorch, whatever it says at import
    try:
        arguments, overrides = parse(argv)
        return _DISPATCH[arguments.verb](arguments, overrides)
    except UserError as error:
        print(f"irl_jax: error: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of it once more as it ends
        return 141
    except KeyboardInterrupt:
        print("irl_jax: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def _one_line(text: str, most: int = 1500) -> str:
    """A message on one line of some length, with nothing in it that a terminal would obey: it may quote what it complains about."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """(flags, {config key: text of its override}).

    Raises:
      UserError: an unknown verb or flag, or a value that the flag does not take.
    """
    if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
        raise UserError(f"unknown verb '{argv[0]}'{nearest(argv[0], VERBS)}; the verbs are {', '.join(VERBS)}")
    for argument in argv:
        if not argument.isascii() and argument.encode(errors="replace") != argument.encode(errors="surrogateescape"):
            raise UserError(f"{argument}: is not UTF-8; rename what it names")
    parser, verbs = _parsers()
    overrides, rest = {}, []
    for argument in argv:
        if argument.startswith(OVERRIDE):
            key, equals, text = argument.removeprefix(OVERRIDE).partition("=")
            if not equals:
                raise UserError(f"{argument}: write it as {OVERRIDE}{key}=VALUE")
            if key in overrides:
                raise UserError(f"{OVERRIDE}{key}: given twice, as {overrides[key]} and as {text}; which one?")
            overrides[key] = text
        else:
            rest.append(argument)
    arguments, unknown = parser.parse_known_args(rest)
    if unknown:
        flags = [flag for flag in verbs[arguments.verb]._option_string_actions if flag.startswith("--")]
        name = unknown[0].split("=")[0]
        raise UserError(f"{arguments.verb}: unknown argument '{name}'{nearest(name, flags)}; its flags are {', '.join(flags)}")
    if overrides and arguments.verb not in ("run", "aot", "config"):
        raise UserError(f"{OVERRIDE}{next(iter(overrides))}: {arguments.verb} takes no config but the workdir's own; run, aot, config do")
    _refuse_twice(verbs[arguments.verb], rest)
    return arguments, overrides


def _refuse_twice(parser: argparse.ArgumentParser, given: list[str]) -> None:
    """Refuses a flag that takes one value and is given two."""
    names = [argument.split("=")[0] for argument in given]
    for name, action in parser._option_string_actions.items():
        if names.count(name) > 1 and action.nargs != 0 and not isinstance(action, argparse._AppendAction):
            raise UserError(f"{name}: given twice; which one?")


def load_config(text: str) -> ConfigDict:
    """The config of `FILE.py` or `FILE.py:VARIANT`: what its get_config() or get_config(VARIANT) returns; "" is the default.

    Raises:
      UserError: no such file, or the file breaks the config's own rules (unknown keys, wrong types).
    """
    if not text:
        return default()
    name, _, variant = text.partition(":")
    path = pathlib.Path(name).expanduser()
    if not path.is_file():
        if os.path.lexists(path):
            raise UserError(f"--config={text}: is no file that can be read")
        near = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UserError(f"--config={text}: no such file{nearest(str(path), near)}")
    if path.suffix != ".py":
        raise UserError(f"--config={text}: must be a .py file with a get_config(); a workdir's config.json is a run's record, which "
                        "nothing runs")
    config = _call_get_config(path, variant)
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() must return the ConfigDict of irl_jax.config.default(), changed as needed")
    known, given = keys_of(default()), keys_of(config)
    for key in [*given, *known]:
        if key not in known:
            raise UserError(f"{path}: unknown config key '{key}'{nearest(key, known)}")
        if key not in given:
            raise UserError(f"{path}: config key '{key}' is missing; start from irl_jax.config.default()")
    return config.lock()


def _configured(arguments, overrides) -> ConfigDict:
    config = load_config(arguments.config)
    for key, text in overrides.items():
        override(config, key, text)
    return config


def _sweep(arguments, config, overrides, stages) -> int:
    from irl_jax import sweep

    own = ("help", "config", "workdir", "sweep")
    flags = {action.dest: getattr(arguments, action.dest) for action in _parsers()[1]["run"]._actions
             if action.dest not in own and getattr(arguments, action.dest) != action.default}
    given = [f"--{name}" if value is True else f"--{name}={value}" for name, value in flags.items()]
    return sweep.run(sweep.members(config, arguments.sweep, overrides), arguments.workdir, given, stages)


def _status(arguments, _) -> int:
    from irl_jax import status

    print(*status.lines(arguments.workdir), sep="\n")
    return 0


def _config(arguments, overrides) -> int:
    from irl_jax import checks, describe, workdir

    if arguments.markdown + bool(arguments.workdir) + bool(arguments.config or overrides) > 1:
        raise UserError("config: --markdown, --workdir and --config exclude each other (a run's own config takes no overrides)")
    if arguments.markdown:
        print(describe.markdown(), end="")
    elif arguments.workdir:
        config = workdir.read_config(arguments.workdir)
        print(*describe.lines(config, describe.set_by(config, {}, f"{arguments.workdir}/{workdir.CONFIG}")), sep="\n")
    else:
        with describe.recording() as seen:
            config = load_config(arguments.config)
        origins = describe.set_by(config, seen, arguments.config) | {key: f"{OVERRIDE}{key}" for key in overrides}
        for key, text in overrides.items():
            override(config, key, text)
        print(*describe.lines(config, origins), sep="\n", flush=True)
        checks.check(config)  # what run would refuse it for, below what is printed
    return 0


def _aot(arguments, overrides) -> int:
    config = _configured(arguments, overrides)
    from irl_jax.stages import aot

    aot.run(config, arguments.topology, arguments.slices, arguments.out, tuple(step for step in arguments.steps.split(",") if step))
    return 0


def _run(arguments, overrides) -> int:
    if not arguments.workdir.strip():
        raise UserError("--workdir: is empty; name a folder")
    config, stages = _configured(arguments, overrides), tuple(stage for stage in arguments.stages.split(",") if stage)
    if arguments.sweep:
        return _sweep(arguments, config, overrides, stages)
    from irl_jax import distributed
    from irl_jax.stages import run_pipeline

    _keep_compiled(arguments.compilation_cache)
    if arguments.multihost:
        distributed.initialize(arguments.coordinator, arguments.processes, arguments.process, arguments.patience)
    elif arguments.coordinator or arguments.processes or arguments.process >= 0:
        raise UserError("--coordinator, --processes and --process: need --multihost")
    run_pipeline(config, arguments.workdir, stages)
    distributed.finish()
    return 0


def _keep_compiled(directory: str | None) -> None:
    """Turns jax's persistent compilation cache on, before jax is imported; "" turns it off."""
    if directory is None:
        directory = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.join("~", ".cache", "irl_jax"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.expanduser(directory)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # a run has dozens of small programs


def _generate(arguments, _) -> int:
    _check_source(arguments, arguments.prompts, "--prompts")
    if arguments.agreement is not None and not (arguments.reward and arguments.best_of > 1):
        raise UserError("--agreement: needs --reward, an ensemble, and --best_of above 1")
    if arguments.best_of > 1 and not arguments.reward:
        raise UserError("--best_of: needs --reward, the reward that chooses")
    if arguments.reward and arguments.samples > 1:
        raise UserError("--samples: --reward writes the best of --best_of samples, one a prompt; drop one of the two")
    if arguments.model and arguments.max_tokens is None:
        arguments.max_tokens = 64
    _keep_compiled(None)
    from irl_jax.stages.generate import generate

    generate(arguments)
    return 0


def _score(arguments, _) -> int:
    _check_source(arguments, arguments.data, "--data")
    _keep_compiled(None)
    from irl_jax.stages.generate import score

    score(arguments)
    return 0


def _export(arguments, _) -> int:
    if arguments.base and not arguments.adapter:
        raise UserError("--base: needs --adapter; a merged folder stands on no other")
    out = pathlib.Path(os.path.abspath(os.path.expanduser(arguments.out)))
    if "://" in arguments.out:
        raise UserError(f"--out={arguments.out}: must be a folder of this machine; copy it to the store afterwards")
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out={arguments.out}: is there already and not an empty folder; choose another, or remove it")
    _check_folder(arguments.out, str(out.parent))
    arguments.out = out
    from irl_jax.stages.export import export

    export(arguments)
    return 0


def _prepare(arguments, _) -> int:
    files = {split: path for split, path in (("train", arguments.data), ("test", arguments.test)) if path}
    for flag, path in (("--data", arguments.data), ("--test", arguments.test)):
        if path and not os.path.isfile(os.path.expanduser(path)):
            raise UserError(f"{flag}={path}: no such file")
    from irl_jax.data.tfds.prepare import prepare

    print(prepare(arguments.kind, files, arguments.out, arguments.fields))
    return 0


def _compare(arguments, _) -> int:
    from irl_jax.stages.compare import compare

    compare(arguments.workdirs, arguments.out)
    return 0


_DISPATCH = {"run": _run, "status": _status, "compare": _compare, "config": _config, "prepare": _prepare, "generate": _generate,
             "score": _score, "export": _export, "aot": _aot}


def _check_source(arguments, records: str, flag: str) -> None:
    """What can be refused before anything heavy is loaded."""
    if bool(arguments.model) == bool(arguments.workdir):
        raise UserError("give either --model=DIR (a Hugging Face folder) or --workdir=W (a run)")
    if arguments.model and (arguments.role or arguments.reward):
        given = "--role" if arguments.role else "--reward"
        raise UserError(f"{given}: needs --workdir; a plain folder has one model and no reward")
    if not os.path.isfile(os.path.expanduser(records)):
        there = os.path.lexists(os.path.expanduser(records))
        raise UserError(f"{flag}={records}: {'is no file that can be read' if there else 'no such file'}")
    out = os.path.abspath(os.path.expanduser(arguments.out))
    folder = os.path.dirname(out)
    if os.path.isdir(out):
        raise UserError(f"--out={arguments.out}: must be a file in a folder that exists")
    if os.path.lexists(out) and not os.path.isfile(out):  # /dev/null would become a file
        raise UserError(f"--out={arguments.out}: must be a plain file, and is something else")
    if os.path.realpath(out) == os.path.realpath(os.path.expanduser(records)):
        raise UserError(f"--out={arguments.out}: is the file of {flag}, which would be replaced; choose another")
    _check_folder(arguments.out, folder)
    arguments.out = out


def _check_folder(out: str, folder: str) -> None:
    """Refuses an --out whose folder is not there or cannot be written to."""
    if not os.path.isdir(folder):
        raise UserError(f"--out={out}: must be in a folder that exists")
    if not os.access(folder, os.W_OK):
        raise UserError(f"--out={out}: the folder cannot be written to")


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors."""

    def error(self, message):
        raise UserError(f"{message} (see {self.prog} --help)")


def _number(kind, low, high=math.inf, above=False):
    """An argparse type: a finite number from `low` (or above it) to `high`."""

    def parse_number(text):
        value = kind(text)
        if not (low < value if above else low <= value) or not value <= high or math.isinf(value):
            raise argparse.ArgumentTypeError(f"{text} is out of range")
        return value

    parse_number.__name__ = kind.__name__
    return parse_number


def _size(text: str) -> int:
    """An argparse type: bytes of "5GB", "500MB" or "1GiB"."""
    parsed = re.fullmatch(r"(\d+(?:\.\d+)?)(?:([KMG])(i?))?B?", text.strip(), re.IGNORECASE)
    size = float(parsed[1]) * (1024 if parsed[3] else 1000) ** (" kmg".index((parsed[2] or " ").lower())) if parsed else 0
    if not 1 <= size <= 2**62:
        raise argparse.ArgumentTypeError(f"'{text[:40]}' is no size; write it as 5GB, 500MB or 1GiB")
    return int(size)


def _temperature(text: str) -> float:
    """An argparse type: 0, or what logits can be divided by."""
    value = float(text)
    if value != 0 and not 1e-3 <= value <= 1e3:
        raise argparse.ArgumentTypeError(f"{text} is out of range: 0, or from 0.001 to 1000")
    return value


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    about = "Inverse reinforcement learning from demonstrations, for language models."
    parser = _Parser(prog="irl_jax", description=about, allow_abbrev=False)
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="{" + ",".join(VERBS) + "}")
    helps = {
        "run": "the pipeline, from demonstrations to a policy and a report; goes on where it was stopped",
        "status": "what of a run, or of a sweep, is done, running and left; only looks",
        "config": "every key of a config: its value, which file or flag set it, and its help",
        "prepare": "a JSONL file as ArrayRecord, read by random access as tfds:NAME: for files larger than memory, and for other tools",
        "generate": "responses to prompts",
        "score": "log-probabilities (and rewards) of responses",
        "export": "a policy or a reward as a Hugging Face folder, with a model card that says how it was made",
        "aot": "what a run needs of TPUs that are not there: memory, operations, network and time of each step",
        "compare": "finished runs side by side, those that differ only in seed pooled: tables, and a page of its own",
    }
    verbs = {verb: subparsers.add_parser(verb, help=helps[verb], description=helps[verb], allow_abbrev=False) for verb in VERBS}
    run = verbs["run"]
    run.add_argument("--config", default="", metavar="FILE.py[:VARIANT]", help="a config file; default: the testbed")
    run.add_argument("--workdir", required=True, metavar="W", help="the run's folder, made where missing")
    run.add_argument("--stages", default="", metavar="A,B", help="only these stages, in the pipeline's order; default: all")
    add = run.add_argument
    add("--sweep", action="append", default=[], metavar="KEY=V1,V2",
        help="one run for each value of a config's key, in a folder of its own under W; more of them: for each combination")
    add("--multihost", action="store_true", help="one process on each host of a pod, found by the environment (Cloud TPU, SLURM)")
    add("--coordinator", default="", metavar="HOST:PORT", help="with --multihost: process 0's address, where the environment does not say")
    add("--processes", type=_number(int, 1), default=0, metavar="N", help="... how many processes there are")
    add("--process", type=_number(int, 0), default=-1, metavar="I", help="... and which of them this is, from 0")
    add("--patience", type=_number(float, 20), default=60.0, metavar="S",
        help="with --multihost: seconds after which the others end where one process dies or stands still; default 60")
    add("--compilation_cache", metavar="DIR",
        help="where compiled programs are kept for the next run; '' keeps none; default: $JAX_COMPILATION_CACHE_DIR or ~/.cache/irl_jax")
    run.epilog = f"{OVERRIDE}SECTION.KEY=VALUE sets one key of the config (`irl_jax config` lists them); tuples as a,b,c."
    verbs["status"].add_argument("workdir", metavar="W", help="a run's folder, or a sweep's")
    add = verbs["config"].add_argument
    add("--config", default="", metavar="FILE.py[:VARIANT]", help="a config file; default: the testbed")
    add("--workdir", default="", metavar="W", help="... or a run's folder, for the config that it has")
    add("--markdown", action="store_true", help="the reference of all keys, as docs/configuration.md has it")
    for verb in ("generate", "score"):
        add = verbs[verb].add_argument
        add("--model", metavar="DIR", help="a Hugging Face folder or hub name")
        add("--workdir", metavar="W", help="... or a run's folder")
        add("--role", metavar="ROLE", help="with --workdir: init, sft or a method such as policy/init_sft; default: sft")
        add("--reward", metavar="RECIPE", help="with --workdir: a learnt reward, such as init_sft")
        add("--out", required=True, metavar="O.jsonl", help="where the records go")
        add("--control_tokens", action="store_true",
            help="special tokens that the records' text spells out are those tokens: for text that a template has rendered; default: text")
    add = verbs["generate"].add_argument
    add("--prompts", required=True, metavar="P.jsonl", help="records with a prompt, or messages")
    add("--best_of", type=_number(int, 1, 10**6), default=1, metavar="N", help="with --reward: the best of N samples")
    add("--agreement", type=_number(float, 0), metavar="A",
        help="with --best_of and an ensemble: go on to more samples only while the members' mean gain is above A of their deviations")
    add("--samples", type=_number(int, 1, 10**6), default=1, metavar="K", help="samples a prompt; default 1")
    add("--temperature", type=_temperature, default=1.0, metavar="T", help="0 is greedy; default 1")
    add("--top_k", type=_number(int, 0, 2**31 - 1), default=0, metavar="K", help="only the K likeliest tokens; 0 is all")
    mass = _number(float, 0, 1, above=True)
    add("--top_p", type=mass, default=1.0, metavar="P", help="only the likeliest tokens of mass P; 1 is all")
    add("--max_tokens", type=_number(int, 1, 2**31 - 1), metavar="T", help="tokens a response; default: the run's limit, or 64")
    add("--seed", type=_number(int, 0, 2**31 - 1), default=0, metavar="S", help="default 0")
    add = verbs["export"].add_argument
    add("--workdir", required=True, metavar="W", help="a run's folder")
    add("--role", required=True, metavar="ROLE", help="init, sft, or a method such as policy/init_sft or reward/init_sft")
    add("--out", required=True, metavar="DIR", help="the new folder; it must not be there, or be empty")
    add("--adapter", action="store_true", help="the role's LoRA adapter alone, for peft; default: merged into the weights")
    add("--base", default="", metavar="DIR", help="with --adapter: the folder that it stands on; default: the run's own model.path")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights; default float32")
    add("--max_shard_size", type=_size, default="5GB", metavar="SIZE", help="weights are cut into files of at most this; default 5GB")
    add = verbs["aot"].add_argument
    add("--config", default="", metavar="FILE.py[:VARIANT]", help="a config file; default: the testbed")
    add("--topology", required=True, metavar="CHIP:SHAPE", help="v5e:4x4, v6e:8x8, v5p:2x4x4, ...")
    add("--slices", type=_number(int, 1, 4096), default=1, metavar="N",
        help="so many of them, joined by the data centre's network; default 1")
    add("--steps", default="", metavar="A,B", help="only these, such as sft,policy; default: all")
    add("--out", default="aot", metavar="DIR", help="where plan.json goes; default: aot")
    add = verbs["prepare"].add_argument
    add("--kind", required=True, choices=("demonstrations", "preferences", "hh"),
        help="{prompt, response} or {messages}; {prompt, chosen, rejected}; or HH-RLHF transcripts")
    add("--data", required=True, metavar="D.jsonl", help="the split 'train', plain or gzip")
    add("--test", default="", metavar="T.jsonl", help="the split 'test', where there is one")
    add("--out", required=True, metavar="DIR", help="the folder that becomes data.tfds_data_dir")
    add("--fields", default="", metavar="NAME=FIELD,..", help="the file's own names of the fields, such as response=answer")
    add = verbs["compare"].add_argument
    add("workdirs", nargs="+", metavar="W", help="folders of finished runs; one alone is shown in the same tables")
    add("--out", default=".", metavar="DIR", help="where compare.html goes; default: here")
    add = verbs["score"].add_argument
    add("--data", required=True, metavar="D.jsonl", help="records with a prompt and a response, or messages")
    add("--eos", action="store_true", help="count the EOS that ends each response")
    return parser, verbs


def _call_get_config(path: pathlib.Path, variant: str):
    """What the file's get_config returns; its mistakes as one line that names the line of the file."""
    spec = importlib.util.spec_from_file_location("irl_jax_config_file", path)
    module = importlib.util.module_from_spec(spec)
    try:
        with _neighbours(path.absolute().parent):
            spec.loader.exec_module(module)
            if not callable(getattr(module, "get_config", None)):
                raise UserError(f"{path}: has no get_config() function")
            return module.get_config(variant) if variant else module.get_config()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename or path}, line {error.lineno or 1}: {error.msg}") from None
    except (Exception, SystemExit) as error:
        raise UserError(_of_the_file(error, path)) from None


def _of_the_file(error: BaseException, path: pathlib.Path) -> str:
    """What is said of an error in a config file: its own words where it refuses, as unknown variants are refused, else the line too.

    Raises: the error again where neither the file nor ml_collections made it, but we.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [place for place, frame in enumerate(frames) if frame.filename == str(path)]
    package = os.path.dirname(os.path.abspath(__file__)) + os.sep
    called = frames[own[-1] :] if own and not isinstance(error, RecursionError) else []
    if any(os.path.abspath(frame.filename).startswith(package) for frame in called):
        raise error
    line = f"{path}, line {frames[own[-1]].lineno}" if own else str(path)
    if os.path.dirname(ml_collections.__file__) in frames[-1].filename:
        return f"{line}: {_short(error)}"
    if type(error) is ValueError and str(error):
        return f"{error}" if str(path.name) in str(error) else f"{line}: {error}"
    return f"{line}: {type(error).__name__}: {error}"


@contextlib.contextmanager
def _neighbours(folder: pathlib.Path):
    """While entered, the files of a folder can be imported by their names: a config may start from the one beside it."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:  # another folder may have files of the same names
            if pathlib.Path(getattr(sys.modules[name], "__file__", None) or "/").parent == folder:
                del sys.modules[name]


def _short(error: Exception) -> str:
    """ml_collections' complaint without its dump of the other fields."""
    text = str(error).replace("\\n", "\n").replace("\\'", "'")
    hint = re.search(r'Did you mean "(\w+)"', text)
    unknown = re.search(r"""Key "(\w+)" does not exist|^['"]*(\w+)['"]*$""", text, re.MULTILINE)
    said = f"unknown config key '{unknown[1] or unknown[2]}'" if unknown else text.splitlines()[0]
    return said + (f"; did you mean '{hint[1]}'?" if hint else "")
