"""Where a command may write: never into a run, a model or the inputs, and only if the system allows it. Checked before any work."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import secrets
from collections.abc import Mapping

from irl_jax import paths
from irl_jax.errors import UserError

_READ = ("data.source", "data.eval_source", "data.prompts_source", "data.preference_source", "data.tfds_data_dir", "model.path",
         "golden.source", "golden.model", "reward.start")  # config keys that name files or folders
_STREAMS = ("/dev/std", "/dev/fd/", "/proc/self/")  # links to files the shell opened, perhaps for appending
_OF_MODELS = ("model.safetensors", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "adapter_config.json")


def check_file(out: str, inputs: Mapping[str, str]) -> str:
    """Checks an --out that is one file in an existing folder.

    Args:
      out: the flag's value. inputs: {description: path} of what the command reads; an empty path is skipped.

    Returns:
      The file's path, with links resolved.

    Raises:
      UserError: it isn't a plain file, lies where nothing may be written, or cannot be written.
    """
    target = os.path.abspath(paths.here(out))
    if os.path.isdir(target):
        raise UserError(f"--out={out}: must be a file in a folder that exists")
    if target.startswith(_STREAMS) or os.path.lexists(target) and not os.path.isfile(target):  # /dev/null would become a file
        raise UserError(f"--out={out}: must be a plain file, and is something else")
    if not os.path.isdir(os.path.dirname(target)):
        raise UserError(f"--out={out}: must be in a folder that exists")
    real = os.path.realpath(target)
    check(out, real, inputs)
    return real


def check_in_folder(out: str, name: str, inputs: Mapping[str, str]) -> None:
    """Checks an --out that is a folder, created if missing, in which `name` is written. Object stores are not checked.

    Raises: as `check_file`.
    """
    if not paths.is_local(out):
        return
    folder = os.path.abspath(paths.here(out))
    if os.path.isfile(folder):
        raise UserError(f"--out={out}: is a file; give a folder")
    if os.path.isdir(os.path.join(folder, name)):
        raise UserError(f"--out={out}: {name} is a folder there; choose another")
    check(out, os.path.join(folder, name), inputs)


def check(out: str, target: str | os.PathLike[str], inputs: Mapping[str, str]) -> None:
    """Refuses a target that lies in a run, in a model or among the inputs, or that cannot be written.

    Args:
      out: the flag's value, for the message. target: the file or folder to write. inputs: as in `check_file`.

    Raises: UserError.
    """
    real = pathlib.Path(os.path.realpath(target))
    for folder in real.parents:
        if kind := _kind(folder):
            raise UserError(f"--out={out}: lies in {kind} {folder}, where only its own files belong; choose a place outside")
    for what, name in inputs.items():
        given = os.path.expanduser(name)
        if name and os.path.isdir(given) and any(_same(given, folder) for folder in (real, *real.parents)):
            raise UserError(f"--out={out}: lies in the folder of {what}, {name}; choose a place outside")
        if name and _same(given, real):
            raise UserError(f"--out={out}: is the file of {what}, which would be replaced; choose another")
    _try(out, pathlib.Path(os.path.abspath(target)))


def inputs_of(workdir: str) -> dict[str, str]:
    """`named` for the config in a run's folder; {} if its config.json cannot be read."""
    stored = _json(os.path.join(os.path.expanduser(workdir), "config.json"))
    config = stored.get("config") if isinstance(stored, dict) else None
    return named(config, f" of {workdir}") if isinstance(config, dict) else {}


def named(config: dict, where: str = "") -> dict[str, str]:
    """{description: path} of the files and folders that a config, as plain JSON, names."""
    found = {}
    for section, name in (key.split(".") for key in _READ):
        value = config[section].get(name) if isinstance(config.get(section), dict) else None
        if isinstance(value, str) and value != "testbed":
            found[f"{section}.{name}{where}"] = value.removeprefix("hh:")
    starts = re.findall(r"\breward\.start=(\S+)", "\n".join(map(str, config.get("variants") or ())))
    return found | {f"reward.start{where}, {start}": start for start in starts}


def _kind(folder: pathlib.Path) -> str:
    """The kind of a folder that nothing else may be written into, else ""."""
    if os.path.isfile(folder / "sweep.json"):
        return "the sweep"
    config = _json(folder / "config.json")
    if config is None:
        return "the model folder" if os.path.isfile(folder / "adapter_config.json") else ""
    fields = config if isinstance(config, dict) else {}
    if isinstance(fields.get("config"), dict) or os.path.isfile(folder / ".lock"):
        return "the workdir"
    return "the model folder" if "model_type" in fields or any(os.path.isfile(folder / name) for name in _OF_MODELS) else ""


def _json(path: str | os.PathLike[str]):
    """A JSON file's value; None if there is no file, {} if it cannot be read."""
    if not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}


def _same(one: str, other: str | os.PathLike[str]) -> bool:
    """Whether two names are of the same file, including hard links and names in another case."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def _try(out: str, target: pathlib.Path) -> None:
    """For each name to create, writes an empty file with a name of that length, as `paths.write` would, and removes it."""
    folder, names = target.parent, [target.name]
    while not os.path.lexists(folder):
        folder, names = folder.parent, [*names, folder.name]
    if not os.path.isdir(folder):
        raise UserError(f"--out={out}: {folder} is no folder")
    for name in names:
        size = max(8, len(os.fsencode(name)))
        probe = folder / secrets.token_hex(size)[:size]
        try:
            paths.write(probe, lambda file: None)
        except UserError as error:
            reason = getattr(error.__context__, "strerror", None) or error
            raise UserError(f"--out={out}: cannot be written ({reason}); choose another place or a shorter name") from None
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
