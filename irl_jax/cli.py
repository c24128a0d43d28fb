"""The verbs: what each does with its flags.

User mistakes print one line on stderr and exit with status 2. A bug of ours keeps its traceback and exits with status 1.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import re
import sys
import traceback

import ml_collections
from ml_collections import ConfigDict

from irl_jax import outputs, paths, terminal
from irl_jax.config import default
from irl_jax.data.jsonl import check_file
from irl_jax.errors import UserError, printable
from irl_jax.flags import OVERRIDE, given_flags, parse
from irl_jax.overrides import keys_of, nearest, override


def entry() -> None:
    """The `irl_jax` command."""
    sys.exit(main(sys.argv[1:]))


def main(argv: list[str]) -> int:
    """Runs one verb.

    Args:
      argv: the arguments after the program's name.

    Returns:
      The exit status: 0; 2 for a user mistake; 130 if interrupted; 141 if nobody reads the output of a verb that only prints.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # its tokenizers need no PyTorch, whatever it says at import
    with terminal.steady(needed=not argv or argv[0] not in _WORKING):
        try:
            arguments, overrides = parse(argv)
            _check_system()
            status = _DISPATCH[arguments.verb](arguments, overrides)
            sys.stdout.flush()
            return status
        except UserError as error:
            print(f"irl_jax: error: {_one_line(str(error))}", file=sys.stderr)
            return 2
        except PermissionError as error:
            said = f"{error.filename}: {error.strerror}; change its rights, or name another"
            print(f"irl_jax: error: {_one_line(said)}", file=sys.stderr)
            return 2
        except BrokenPipeError:  # the reader has closed the pipe
            return 141
        except KeyboardInterrupt:
            print("irl_jax: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
            return 130


def _check_system() -> None:
    """Refuses a system without POSIX locks and signals."""
    try:
        import fcntl  # noqa: F401
    except ImportError:
        raise UserError("irl_jax runs on Linux and macOS; on Windows, run it in WSL (the Windows Subsystem for Linux)") from None


def _one_line(text: str, most: int = 1500) -> str:
    """A message on one line of limited length, without characters that control a terminal: it may quote the text it complains about."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def load_config(text: str) -> ConfigDict:
    """The config of `FILE.py` or `FILE.py:VARIANT`: the result of its get_config() or get_config(VARIANT). "" is the default.

    Raises:
      UserError: no such file, or the file breaks the config's own rules (unknown keys, wrong types).
    """
    if not text:
        return default()
    name, _, variant = text.partition(":")
    path = paths.here(name)
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

    shared = given_flags(arguments, but=("config", "workdir", "sweep"))
    return sweep.run(sweep.members(config, arguments.sweep, overrides), arguments.workdir, shared, stages)


def _status(arguments, _) -> int:
    from irl_jax import status

    print(*map(printable, status.lines(arguments.workdir)), sep="\n")
    return 0


def _config(arguments, overrides) -> int:
    from irl_jax import checks, describe, workdir

    if arguments.markdown + bool(arguments.workdir) + bool(arguments.config or overrides) > 1:
        raise UserError("config: --markdown, --workdir and --config exclude each other (a run's own config takes no overrides)")
    if arguments.markdown:
        print(describe.markdown(), end="")
    elif arguments.workdir:
        config = workdir.read_config(arguments.workdir)
        print(*map(printable, describe.lines(config, describe.set_by(config, f"{arguments.workdir}/{workdir.CONFIG}"))), sep="\n")
    else:
        config = load_config(arguments.config)
        origins = describe.set_by(config, arguments.config) | {key: f"{OVERRIDE}{key}" for key in overrides}
        for key, text in overrides.items():
            override(config, key, text)
        print(*map(printable, describe.lines(config, origins)), sep="\n", flush=True)
        checks.check(config)  # after printing, refuse what run would refuse
    return 0


def _aot(arguments, overrides) -> int:
    config = _configured(arguments, overrides)
    outputs.check_in_folder(arguments.out, "plan.json", outputs.named(config.to_dict()))
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

    keep_compiled(arguments.compilation_cache)
    if arguments.multihost:
        distributed.initialize(arguments.coordinator, arguments.processes, arguments.process, arguments.patience)
    elif arguments.coordinator or arguments.processes or arguments.process >= 0:
        raise UserError("--coordinator, --processes and --process: need --multihost")
    run_pipeline(config, arguments.workdir, stages, arguments.base)
    distributed.finish()
    return 0


def keep_compiled(directory: str | None) -> None:
    """Turns on jax's persistent compilation cache, before jax is imported; "" turns it off."""
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
    keep_compiled(None)
    from irl_jax.stages.generate import generate

    generate(arguments)
    return 0


def _score(arguments, _) -> int:
    _check_source(arguments, arguments.data, "--data")
    keep_compiled(None)
    from irl_jax.stages.generate import score

    score(arguments)
    return 0


def _export(arguments, _) -> int:
    if "://" in arguments.out:
        raise UserError(f"--out={arguments.out}: must be a folder of this machine; copy it to the store afterwards")
    out = pathlib.Path(os.path.abspath(paths.here(arguments.out)))
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out={arguments.out}: is there already and not an empty folder; choose another, or remove it")
    if not out.parent.is_dir():
        raise UserError(f"--out={arguments.out}: must be in a folder that exists")
    outputs.check(arguments.out, out, {"--base": arguments.base, **outputs.inputs_of(arguments.workdir)})
    arguments.out = out
    from irl_jax.stages.export import export

    export(arguments)
    return 0


def _prepare(arguments, _) -> int:
    files = {split: path for split, path in (("train", arguments.data), ("test", arguments.test)) if path}
    check_file(arguments.data, "--data")
    if arguments.test:
        check_file(arguments.test, "--test")
    if arguments.out.strip() and paths.is_local(arguments.out):
        outputs.check_in_folder(arguments.out, f"{arguments.kind}/data", {"--data": arguments.data, "--test": arguments.test})
    from irl_jax.data.tfds.prepare import prepare

    print(prepare(arguments.kind, files, arguments.out, arguments.fields))
    return 0


def _compare(arguments, _) -> int:
    inputs = {what: path for workdir in arguments.workdirs for what, path in outputs.inputs_of(workdir).items()}
    outputs.check_in_folder(arguments.out, "compare.html", inputs)
    from irl_jax.stages.compare import compare

    compare(arguments.workdirs, arguments.out)
    return 0


_DISPATCH = {"run": _run, "status": _status, "compare": _compare, "config": _config, "prepare": _prepare, "generate": _generate,
             "score": _score, "export": _export, "aot": _aot}
_WORKING = ("run", "prepare", "generate", "score", "export", "aot")  # verbs that write files; what they print only reports on them


def _check_source(arguments, records: str, flag: str) -> None:
    """Refuses what it can before anything heavy is loaded."""
    if bool(arguments.model) == bool(arguments.workdir):
        raise UserError("give either --model=DIR (a Hugging Face folder) or --workdir=W (a run)")
    if arguments.model and (arguments.role or arguments.reward or arguments.base):
        given = "--role" if arguments.role else "--reward" if arguments.reward else "--base"
        raise UserError(f"{given}: needs --workdir; a plain folder has one model and no reward")
    check_file(records, flag)
    inputs = {flag: records, "--model": arguments.model or "", "--base": arguments.base, **outputs.inputs_of(arguments.workdir or "")}
    arguments.out = outputs.check_file(arguments.out, inputs)


def _call_get_config(path: pathlib.Path, variant: str):
    """The result of the file's get_config. Its mistakes become one line that names the line of the file."""
    spec = importlib.util.spec_from_file_location("irl_jax_config_file", path)
    assert spec is not None and spec.loader is not None  # a path that ends in .py has both
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
    """A config file's error as a message: a ValueError's own words if they name the file (an unknown variant, say), else the line too.

    Raises: the error again if our code made it, not the file or ml_collections.
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
    """While entered, the files of a folder can be imported by name: a config may start from the one beside it."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:  # another folder may have files of the same names
            if pathlib.Path(getattr(sys.modules[name], "__file__", None) or "/").parent == folder:
                del sys.modules[name]


def _short(error: BaseException) -> str:
    """ml_collections' complaint without its dump of the other fields."""
    text = str(error).replace("\\n", "\n").replace("\\'", "'")
    hint = re.search(r'Did you mean "(\w+)"', text)
    unknown = re.search(r"""Key "(\w+)" does not exist|^['"]*(\w+)['"]*$""", text, re.MULTILINE)
    said = f"unknown config key '{unknown[1] or unknown[2]}'" if unknown else text.splitlines()[0]
    return said + (f"; did you mean '{hint[1]}'?" if hint else "")
