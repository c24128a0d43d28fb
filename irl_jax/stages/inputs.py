"""What makes a run what it is, beside its config: the files and records that decide its results, noted by content in W/inputs.json.

A run notes them before its first stage. Whoever resumes it, and whoever reads its workdir (`generate`, `score`, `export`), must have the
same; so must every host. Files may move: only their content counts.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from irl_jax import artifacts, distributed, hf, paths, variants, workdir
from irl_jax.errors import UserError
from irl_jax.types import Example

BEGUN = "this workdir was begun with"
_ENDS = 2**16  # bytes at either end of a streamed file that are hashed; its size is noted too


def noted(path) -> dict | None:
    """What W/inputs.json says; None where the workdir has none.

    Returns: {"files": {setting: {name: {path, bytes, changed, sha256}}}, "records": {part: {records, sha256}}, "began": ISO time or None}.
    Raises: UserError where the file is damaged.
    """
    file = paths.of(path) / workdir.INPUTS
    return artifacts.read_json(file, {"files!": {}, "records!": {}}, advice=workdir.REPLACE) if file.exists() else None


def hold(context) -> None:
    """Notes the run's inputs where it begins, and compares them where it goes on, on every host.

    Args:
        context: of the run.

    Raises:
        UserError: an input that cannot be read, that is not what the workdir was begun with, or that differs between hosts.
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
    """Refuses a base model that is not the one that the workdir's roles were trained on.

    Args:
        path: the workdir. folder: the model's. base: what --base gave, or "".

    Raises:
        UserError: naming the file that differs; or --base on a workdir without notes.
    """
    before = noted(path)
    if before is None:
        if base:
            raise UserError(f"--base={base}: {path} has no {workdir.INPUTS}, so that nothing tells whether it is the run's model")
        return
    model = before["files"].get("model.path", {})
    _compare_files(path, "model.path", model, files_of(hf.deciding_files(folder), model), folder)


def files_of(files: Iterable[Path], before: Mapping = {}) -> dict[str, dict]:
    """{name: {path, bytes, changed (ns), sha256}} of files.

    A file is read whole, and again only where its path, size or time of change is not that in `before`.
    """
    found = {}
    for file in files:
        status, last = file.stat(), before.get(file.name, {})
        looks = {"path": str(file.absolute()), "bytes": status.st_size, "changed": status.st_mtime_ns}
        if any(last.get(key) != value for key, value in looks.items()) or "sha256" not in last:
            with open(file, "rb") as content:
                looks["sha256"] = hashlib.file_digest(content, "sha256").hexdigest()
        found[file.name] = {**last, **looks}
    return found


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
    """The inputs as this host has them. "about" is compared between hosts alone: workdir.py compares configs where a run goes on."""
    versions = {name: importlib.metadata.version(name) for name in workdir.PACKAGES}
    files = before.get("files", {})
    found = {setting: files_of(listed, files.get(setting, {})) for setting, listed in _files(context).items()}
    return {"about": {"config": artifacts.plain(context.config), "versions": versions}, "files": found, "records": _records(context),
            "began": context.began.isoformat() if "strftime_now" in str(getattr(context.tokenizer, "chat_template", None)) else None}


def _files(context) -> dict[str, list[Path]]:
    """{setting: the files that it names}."""
    config, found = context.config, {}
    if config.model.path:
        found["model.path"] = hf.deciding_files(context.folder)
    if config.golden.kind == "hf_reward":
        found["golden.model"] = hf.deciding_files(hf.resolve(config.golden.model, config.golden.revision))
    if config.golden.kind == "classifier":
        found["golden.source"] = [paths.here(config.golden.source)]
    for reward in {method.config.reward.start: method.config.reward for method in variants.all_methods(config)}.values():
        if reward.start:
            found[f"reward.start={reward.start}"] = hf.deciding_files(hf.resolve(reward.start, reward.start_revision))
    return found


def _records(context) -> dict[str, dict]:
    """{part: the digest of its records}."""
    pairs = [side for pair in context.pairs for side in (pair.chosen, pair.rejected)]
    parts = {"training": context.demonstrations, "development": context.development, "evaluation": context.evaluation, "pairs": pairs}
    found = {part: digest(examples) for part, examples in parts.items()}
    if context.stream:
        found["streamed"] = {"records": context.stream.size, "sha256": _ends_digest(context.stream.files())}
    return found


def _ends_digest(files: Iterable) -> str:
    """SHA-256 of the files' names, sizes, and first and last bytes: files of a data set larger than memory are not read whole."""
    content = hashlib.sha256()
    for file in files:
        size = paths.size(file)
        content.update(f"{file.name} {size} ".encode())
        with file.open("rb") as opened:
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
    """{what it is called in a message: its content}."""
    about = found["about"]
    flat: dict[str, object] = {f"version of {name}": version for name, version in about["versions"].items()}
    flat |= {f"config ({section})": value for section, value in about["config"].items()}
    flat |= {f"{name} ({setting})": file["sha256"] for setting, files in found["files"].items() for name, file in files.items()}
    return flat | {f"set of {part} records": digest["sha256"] for part, digest in found["records"].items()}


def _compare(path, before: Mapping, now: Mapping) -> None:
    for setting, files in now["files"].items():
        there = before["files"].get(setting, {})
        folder = Path(next(iter(files.values()))["path"]).parent
        _compare_files(path, setting, there, files, folder)
    for part in {**before["records"], **now["records"]}:
        then, found = (side["records"].get(part, {"records": 0, "sha256": ""}) for side in (before, now))
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
        if now[name]["sha256"] != before[name].get("sha256"):
            raise UserError(f"{now[name]['path']}: not the file that {BEGUN} ({paths.of(path) / workdir.INPUTS} has its SHA-256); {advice}")


def _write(path, found: dict, before: dict | None) -> None:
    if found != before:
        paths.write(paths.of(path) / workdir.INPUTS, artifacts.json_of(found))


def began(path) -> datetime.datetime | None:
    """The time that the run's chat template writes, wherever and whenever it is rendered: None where the run noted none.

    Raises: UserError where W/inputs.json is damaged.
    """
    before = noted(path)
    return _time(path, before["began"]) if before and before.get("began") else None


def _time(path, text) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise UserError(f"{paths.of(path) / workdir.INPUTS}: 'began' is no time; {workdir.REPLACE}") from None
