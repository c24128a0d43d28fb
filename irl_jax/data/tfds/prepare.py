"""The command `prepare`: a JSONL file as ArrayRecord, which TFDS reads by random access, whatever its size."""

from __future__ import annotations

import contextlib
import functools
import io
import pathlib

from irl_jax import paths
from irl_jax.config import default
from irl_jax.data import sources
from irl_jax.errors import UserError
from irl_jax.overrides import nearest


def prepare(kind: str, files: dict[str, str], out: str, fields: str = "") -> str:
    """Writes OUT/NAME/VERSION, completely or not at all.

    Args:
        kind: one of `builders.BUILDERS`. files: {split: path of a JSONL file, plain or gzip}. out: the folder for TFDS's data_dir.
        fields: "response=answer,...": the files' own names of the fields, if they are not the config's defaults.

    Returns:
        A message for the user: what was written and how to read it.

    Raises:
        UserError: a bad line (named by file, line and field), nothing to write, or no room. Existing files stay as they were.
    """
    if not out.strip():
        raise UserError("--out: is empty; name a folder")
    if not paths.is_local(out):
        raise UserError(f"--out={out}: must be a folder of this machine; copy it to the store afterwards")
    names = _fields(fields)
    import tensorflow_datasets as tfds

    from irl_jax.data.tfds import builders

    into = paths.here(out).absolute()
    if into.exists() and not into.is_dir():
        raise UserError(f"--out={into}: is a file; give a folder")
    make = functools.partial(builders.BUILDERS[kind], files=files, fields=names)
    folder = pathlib.Path(make(data_dir=str(into)).data_dir)
    if folder.exists():
        raise UserError(f"--out={into}: {folder} is there already; choose another, or remove it")
    with paths.new_folder(folder) as temporary, contextlib.redirect_stdout(io.StringIO()):  # TFDS prints what it would download
        builder = make(data_dir=str(temporary))
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        for file in pathlib.Path(builder.data_dir).iterdir():
            file.rename(temporary / file.name)
        for made in (builder.name, "downloads"):
            paths.remove(temporary / made)
    left_out = sources.left_out({name: number for name, number in builder.counts.items() if name != "records"})
    return (f"{builder.counts['records']} records in {folder}{'; ' if left_out else ''}{left_out}; read them with "
            f"--config.data.source=tfds:{builder.name} --config.data.tfds_data_dir={into}")


def _fields(text: str):
    """The field map of "response=answer,..."."""
    known, seen = default().data.fields, set()
    for part in (part for part in text.split(",") if part):
        name, equals, field = part.partition("=")
        if not equals or not field:
            raise UserError(f"--fields={text}: write it as response=answer,...: a field's name here, and its name in the file")
        if name not in known:
            raise UserError(f"--fields={text}: there is no field '{name}' here{nearest(name, known)}; there are {', '.join(known)}")
        if name in seen:
            raise UserError(f"--fields={text}: the field '{name}' is given twice; which one?")
        seen.add(name)
        known[name] = field
    return known
