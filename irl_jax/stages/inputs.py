"""A run's inputs beside its config: the files and records that decide its results, noted by content in W/inputs.json.

A run notes them before its first stage. Resuming it or reading its workdir (`generate`, `score`, `export`) needs the same inputs, on
every host. Files may move: only their content counts.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from irl_jax import artifacts, distributed, hf, paths, variants, workdir
from irl_jax.errors import UserError
from irl_jax.types import Example

BEGUN = "this workdir was begun with"
_ENDS = 2**16  # bytes hashed at each end of a streamed file, if the data are too large to read whole
_WHOLE = 2**30  # most bytes of streamed files that are read whole


def noted(path) -> dict | None:
    """Reads W/inputs.json; None if the workdir has none.

    Returns: {"files": {setting: {name: {path, bytes, changed, inode, sha256}}}, "records": {part: {records, sha256}}, "began": time}.
    Raises: UserError if the file is damaged.
    """
    file = paths.of(path) / workdir.INPUTS
    if not file.exists():
        return None
    found = artifacts.read_json(file, {"files!": {}, "records!": {}}, advice=workdir.REPLACE)
    for name, notes in [*found["files"].items(), ("records", found["records"])]:
        each = list(notes.values()) if isinstance(notes, dict) else [None]
        if not all(isinstance(note, dict) and isinstance(note.get("sha256"), str) for note in each):
            raise UserError(f"{file}: {name!r} is no object of notes with a 'sha256'; {workdir.REPLACE}")
    return found


def hold(context) -> None:
    """Notes a new run's inputs, and compares a resumed run's with its notes, on every host.

    Args:
        context: the run's.

    Raises:
        UserError: an input cannot be read, is not what the workdir was begun with, or differs between hosts.
    """
    path = context.workdir.path
    before = distributed.primary_first(lambda: noted(path))
    if context.base and before is None:
        raise UserError(f"--base={context.base}: {path} is not begun yet; name the model in --config.model.path")
    context.began = _time(path, distributed.agree((before or {}).get("began") or context.began.isoformat(timespec="seconds")))
    with distributed.alone():
        try:
            mine = _found(context, before or {})
        except UserError as error:
            mine = {"error": str(error)}
    _same_on_all_hosts(distributed.gather(mine))
    if before is not None:
        _compare(path, before, mine)
    distributed.primary_first(lambda: _write(path, {name: mine[name] for name in ("files", "records", "began")}, before))


def check_model(path, folder: Path, base: str) -> None:
    """Refuses a base model other than the one the workdir's roles were trained on.

    Args:
        path: the workdir. folder: the model's. base: what --base gave, or "".

    Raises:
        UserError: a file differs (the message names it), or --base is given for a workdir without notes.
    """
    before = noted(path)
    if before is None:
        if base:
            raise UserError(f"--base={base}: {path} has no {workdir.INPUTS}, so that nothing tells whether it is the run's model")
        return
    model = before["files"].get("model.path", {})
    _compare_files(path, "model.path", model, files_of(hf.deciding_files(folder), model), folder)


def files_of(files: Sequence[Path], before: Mapping = {}) -> dict[str, dict]:
    """{name: {path, bytes, changed (ns), inode, sha256}} of files in one folder and its subfolders.

    Reads each file whole, but only if its path, size, inode or time of last change differs from `before`. That time is the system's
    ctime, which copies and archives can't set.

    Raises: UserError: a file is missing or cannot be read.
    """
    found, folder = {}, _folder(files)
    for file in files:
        name = file.relative_to(folder).as_posix()
        last = before.get(name, {})
        try:
            status = file.stat()
            looks = {"path": str(file.absolute()), "bytes": status.st_size, "changed": status.st_ctime_ns, "inode": status.st_ino}
            if any(last.get(key) != value for key, value in looks.items()) or "sha256" not in last:
                with open(file, "rb") as content:
                    looks["sha256"] = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror}), and the run needs it; bring it back") from None
        found[name] = {**last, **looks}
    return found


def _folder(files: Iterable) -> Path:
    """The deepest folder that contains all files."""
    return Path(os.path.commonpath([os.path.dirname(file) for file in files]))


def digest(examples: Sequence[Example]) -> dict:
    """{records, sha256} of tokenised records: their ids, and whether each response ended."""
    content = hashlib.sha256()
    for example in examples:
        for ids in (example.prompt, example.response):
            content.update(len(ids).to_bytes(4, "little") + np.asarray(ids, "<i4").tobytes())
        content.update(bytes([example.ended]))
    return {"records": len(examples), "sha256": content.hexdigest()}


# ---- what there is ----


def _found(context, before: Mapping) -> dict:
    """The inputs on this host. "about" is only compared between hosts: workdir.py compares the configs of resumed runs."""
    versions = {**workdir.versions(), "irl_jax's code": workdir.git_commit()}
    files = before.get("files", {})
    found = {setting: files_of(listed, files.get(setting, {})) for setting, listed in _files(context).items()}
    return {"about": {"config": artifacts.plain(context.config), "versions": versions}, "files": found, "records": _records(context),
            "began": context.began.isoformat() if "strftime_now" in str(getattr(context.tokenizer, "chat_template", None)) else None}


def _files(context) -> dict[str, list[Path]]:
    """{setting: its files}."""
    config, found = context.config, {}
    if config.model.path:
        found["model.path"] = hf.deciding_files(context.folder)
    if config.golden.kind == "hf_reward":
        found["golden.model"] = hf.deciding_files(hf.resolve(config.golden.model, config.golden.revision))
    if config.golden.kind == "classifier":
        found["golden.source"] = [paths.here(config.golden.source)]
    rewards = [method.config.reward for method in variants.all_methods(config)]
    for start, revision in dict.fromkeys((reward.start, reward.start_revision) for reward in rewards if reward.start):
        name = f"reward.start={start}{f' at {revision}' if revision else ''}"
        found[name] = hf.deciding_files(hf.resolve(start, revision))
    return found


def _records(context) -> dict[str, dict]:
    """{part: the digest of its records}."""
    pairs = [side for pair in context.pairs for side in (pair.chosen, pair.rejected)]
    parts: dict[str, Sequence[Example]] = {
        "training": context.demonstrations, "development": context.development, "evaluation": context.evaluation, "pairs": pairs}
    if context.more_prompts:
        parts["further prompt"] = context.more_prompts
    found = {part: digest(examples) for part, examples in parts.items()}
    if context.config.golden.kind == "hf_reward" and context.config.golden.chat:  # whole conversations; prompts may be cut
        turns = json.dumps([context.turns(context.text(example.prompt)) for example in context.evaluation], default=str)
        found["judged"] = {"records": len(context.evaluation), "sha256": hashlib.sha256(turns.encode()).hexdigest()}
    if context.stream:
        found["streamed"] = {"records": context.stream.size, "sha256": _streamed_digest(context.stream.files())}
    return found


def _streamed_digest(files: Sequence) -> str:
    """SHA-256 of the files' names, sizes and content. If they are too large to read twice, only their first and last bytes count."""
    content, sizes = hashlib.sha256(), [paths.size(file) for file in files]
    most = max(sizes, default=0) if sum(sizes) <= _WHOLE else _ENDS
    for file, size in zip(files, sizes, strict=True):
        content.update(f"{file.name} {size} ".encode())
        with file.open("rb") as opened:
            for start in range(0, min(size, most), _ENDS):
                opened.seek(start)
                content.update(opened.read(_ENDS))
            opened.seek(max(0, size - _ENDS))
            content.update(opened.read(_ENDS))
    return content.hexdigest()


# ---- comparing ----


def _same_on_all_hosts(every: Sequence[dict]) -> None:
    many = len(every) > 1
    for number, theirs in enumerate(every):
        if "error" in theirs:
            raise UserError(f"process {number}: {theirs['error']}" if many else theirs["error"])
    flat = [_flat(found) for found in every]
    for number, theirs in enumerate(flat):
        for key in [*flat[0], *theirs]:
            if flat[0].get(key) != theirs.get(key):
                raise UserError(f"process {number} has another {key} than process 0; give every host the same files, records and settings")


def _flat(found: Mapping) -> dict[str, object]:
    """{name for messages: content}."""
    about = found["about"]
    flat: dict[str, object] = {f"version of {name}": version for name, version in about["versions"].items()}
    flat |= {f"config ({section})": value for section, value in about["config"].items()}
    flat |= {f"{name} ({setting})": file["sha256"] for setting, files in found["files"].items() for name, file in files.items()}
    return flat | {f"set of {part} records": digest["sha256"] for part, digest in found["records"].items()}


def _compare(path, before: Mapping, now: Mapping) -> None:
    for setting, files in now["files"].items():
        there = before["files"].get(setting, {})
        _compare_files(path, setting, there, files, _folder(file["path"] for file in files.values()))
    for part in {**before["records"], **now["records"]}:
        then, found = ({"records": 0, "sha256": "", **side["records"].get(part, {})} for side in (before, now))
        if then["sha256"] != found["sha256"]:
            raise UserError(f"{path}: the {part} records are not those that {BEGUN} ({then['records']} then, {found['records']} now; "
                            f"{workdir.INPUTS} has the hash of their tokens); bring the run's own data back, or choose another --workdir")


def _compare_files(path, setting: str, before: Mapping, now: Mapping, folder) -> None:
    base = ", name their folder by --base" if setting == "model.path" else ""
    advice = f"bring the run's own files back{base} or choose another --workdir"
    for name in {**before, **now}:
        if name not in now:
            raise UserError(f"{folder} ({setting}): has no {name}, which {BEGUN}; {advice}")
        if name not in before:
            raise UserError(f"{now[name]['path']}: is not among the files of {setting} that {BEGUN}; {advice}")
        if now[name]["sha256"] != before[name]["sha256"]:
            raise UserError(f"{now[name]['path']}: not the file that {BEGUN} ({paths.of(path) / workdir.INPUTS} has its SHA-256); {advice}")


def _write(path, found: dict, before: dict | None) -> None:
    if found != before:
        paths.write(paths.of(path) / workdir.INPUTS, artifacts.json_of(found))


def began(path) -> datetime.datetime | None:
    """The time that the run's chat template writes, wherever and whenever it is rendered. None if the run noted none.

    Raises: UserError if W/inputs.json is damaged.
    """
    before = noted(path)
    return _time(path, before["began"]) if before and before.get("began") else None


def _time(path, text) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise UserError(f"{paths.of(path) / workdir.INPUTS}: 'began' is no time; {workdir.REPLACE}") from None
