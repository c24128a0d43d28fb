"""The command line's verbs and flags, parsed by argparse, and the overrides of config keys."""

from __future__ import annotations

import argparse
import math
import re

from irl_jax.errors import UserError
from irl_jax.overrides import nearest

HELPS = {
    "run": "the pipeline, from demonstrations to a policy and a report; goes on where it was stopped",
    "status": "what of a run, or of a sweep, is done, running and left; only looks",
    "compare": "finished runs side by side, those that differ only in seed pooled: tables, and a page of its own",
    "config": "every key of a config: its value, which file or flag set it, and its help",
    "prepare": "a JSONL file as ArrayRecord, read by random access as tfds:NAME: for files larger than memory, and for other tools",
    "generate": "responses to prompts",
    "score": "log-probabilities (and rewards) of responses",
    "export": "a policy or a reward as a Hugging Face folder, with a model card that says how it was made",
    "aot": "what a run needs of TPUs that are not there: memory, operations, network and time of each step",
}
VERBS = tuple(HELPS)
OVERRIDE = "--config."


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """(flags, {config key: text of its override}).

    Raises:
      UserError: an unknown verb or flag, or a value that the flag doesn't take.
    """
    if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
        raise UserError(f"unknown verb '{argv[0]}'{nearest(argv[0], VERBS)}; the verbs are {', '.join(VERBS)}")
    for argument in argv:
        if not argument.isascii() and argument.encode(errors="replace") != argument.encode(errors="surrogateescape"):
            raise UserError(f"{argument}: is not UTF-8; rename what it names")
    parser, verbs = parsers()
    overrides: dict[str, str] = {}
    rest = []
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
    """Refuses a flag that takes one value but is given twice."""
    names = [argument.split("=")[0] for argument in given]
    for name, action in parser._option_string_actions.items():
        if names.count(name) > 1 and action.nargs != 0 and not isinstance(action, argparse._AppendAction):
            raise UserError(f"{name}: given twice; which one?")


def given_flags(arguments: argparse.Namespace, but: tuple[str, ...] = ()) -> list[str]:
    """The verb's flags that are not at their defaults, as written on the command line. `but`: names of flags to leave out."""
    values = {action.dest: (getattr(arguments, action.dest), action.default) for action in parsers()[1][arguments.verb]._actions
              if action.dest not in ("help", *but)}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, (value, default) in values.items() if value != default]


class Parser(argparse.ArgumentParser):
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
    """An argparse type: bytes from "5GB", "500MB" or "1GiB"."""
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


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """(the main parser, {verb: the parser of its flags})."""
    about = "Inverse reinforcement learning from demonstrations, for language models."
    parser = Parser(prog="irl_jax", description=about, allow_abbrev=False)
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="{" + ",".join(VERBS) + "}")
    verbs = {verb: subparsers.add_parser(verb, help=told, description=told, allow_abbrev=False) for verb, told in HELPS.items()}
    for verb, flags_of in _FLAGS.items():
        flags_of(verbs[verb])
    return parser, verbs


def _run(parser) -> None:
    add = parser.add_argument
    add("--config", default="", metavar="FILE.py[:VARIANT]", help="a config file; default: the testbed")
    add("--workdir", required=True, metavar="W", help="the run's folder, made where missing")
    add("--stages", default="", metavar="A,B", help="only these stages, in the pipeline's order; default: all")
    _base(parser)
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
    parser.epilog = f"{OVERRIDE}SECTION.KEY=VALUE sets one key of the config (`irl_jax config` lists them); tuples as a,b,c."


def _status(parser) -> None:
    add = parser.add_argument
    add("workdir", metavar="W", help="a run's folder, or a sweep's")


def _compare(parser) -> None:
    add = parser.add_argument
    add("workdirs", nargs="+", metavar="W", help="folders of finished runs; one alone is shown in the same tables")
    add("--out", default=".", metavar="DIR", help="where compare.html goes; default: here")


def _config(parser) -> None:
    add = parser.add_argument
    add("--config", default="", metavar="FILE.py[:VARIANT]", help="a config file; default: the testbed")
    add("--workdir", default="", metavar="W", help="... or a run's folder, for the config that it has")
    add("--markdown", action="store_true", help="the reference of all keys, as docs/configuration.md has it")


def _prepare(parser) -> None:
    add = parser.add_argument
    add("--kind", required=True, choices=("demonstrations", "preferences", "hh"),
        help="{prompt, response} or {messages}; {prompt, chosen, rejected}; or HH-RLHF transcripts")
    add("--data", required=True, metavar="D.jsonl", help="the split 'train', plain or gzip")
    add("--test", default="", metavar="T.jsonl", help="the split 'test', where there is one")
    add("--out", required=True, metavar="DIR", help="the folder that becomes data.tfds_data_dir")
    add("--fields", default="", metavar="NAME=FIELD,..", help="the file's own names of the fields, such as response=answer")


def _base(parser) -> None:
    parser.add_argument("--base", default="", metavar="DIR", help="where the run's base model is now, if it has moved from model.path; its "
                        "files must be the same")


def _records(parser) -> None:
    """Flags that generate and score share."""
    add = parser.add_argument
    add("--model", metavar="DIR", help="a Hugging Face folder or hub name")
    add("--workdir", metavar="W", help="... or a run's folder")
    add("--role", metavar="ROLE", help="with --workdir: init, sft or a method such as policy/init_sft; default: sft")
    add("--reward", metavar="RECIPE", help="with --workdir: a learnt reward, such as init_sft")
    _base(parser)
    add("--out", required=True, metavar="O.jsonl", help="where the records go")
    add("--control_tokens", action="store_true",
        help="special tokens that the records' text spells out are those tokens: for text that a template has rendered; default: text")


def _generate(parser) -> None:
    add = parser.add_argument
    _records(parser)
    add("--prompts", required=True, metavar="P.jsonl", help="records with a prompt, or messages")
    add("--best_of", type=_number(int, 1, 10**6), default=1, metavar="N", help="with --reward: the best of N samples")
    add("--agreement", type=_number(float, 0), metavar="A",
        help="with --best_of and an ensemble: go on to more samples only while the members' mean gain is above A of their deviations")
    add("--samples", type=_number(int, 1, 10**6), default=1, metavar="K", help="samples a prompt; default 1")
    add("--temperature", type=_temperature, metavar="T", help="0 is greedy; default 1, with --reward=robust the temperature of robust")
    add("--top_k", type=_number(int, 0, 2**31 - 1), default=0, metavar="K", help="only the K likeliest tokens; 0 is all")
    mass = _number(float, 0, 1, above=True)
    add("--top_p", type=mass, default=1.0, metavar="P", help="only the likeliest tokens of mass P; 1 is all")
    add("--max_tokens", type=_number(int, 1, 2**31 - 1), metavar="T", help="tokens a response; default: the run's limit, or 64")
    add("--seed", type=_number(int, 0, 2**31 - 1), default=0, metavar="S", help="default 0")


def _score(parser) -> None:
    add = parser.add_argument
    _records(parser)
    add("--data", required=True, metavar="D.jsonl", help="records with a prompt and a response, or messages")
    add("--eos", action="store_true", help="count the EOS that ends each response")


def _export(parser) -> None:
    add = parser.add_argument
    add("--workdir", required=True, metavar="W", help="a run's folder")
    add("--role", required=True, metavar="ROLE", help="init, sft, or a method such as policy/init_sft or reward/init_sft")
    add("--out", required=True, metavar="DIR", help="the new folder; it must not be there, or be empty")
    add("--adapter", action="store_true", help="the role's LoRA adapter alone, for peft; default: merged into the weights")
    _base(parser)
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights; default float32")
    add("--max_shard_size", type=_size, default="5GB", metavar="SIZE", help="weights are cut into files of at most this; default 5GB")


def _aot(parser) -> None:
    add = parser.add_argument
    add("--config", default="", metavar="FILE.py[:VARIANT]", help="a config file; default: the testbed")
    add("--topology", required=True, metavar="CHIP:SHAPE", help="v5e:4x4, v6e:8x8, v5p:2x4x4, ...")
    add("--slices", type=_number(int, 1, 4096), default=1, metavar="N",
        help="so many of them, joined by the data centre's network; default 1")
    add("--steps", default="", metavar="A,B", help="only these, such as sft,policy; default: all")
    add("--out", default="aot", metavar="DIR", help="where plan.json goes; default: aot")


_FLAGS = {"run": _run, "status": _status, "compare": _compare, "config": _config, "prepare": _prepare, "generate": _generate,
          "score": _score, "export": _export, "aot": _aot}
