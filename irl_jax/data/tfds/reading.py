"""Records of a prepared TFDS builder, by random access (ArrayRecord files), without TensorFlow."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence

from irl_jax import foreign, paths
from irl_jax.errors import UserError

PREFIX = "tfds:"
_CHUNK = 1024  # records read at a time


class Source:
    """The records of one split of a prepared builder."""

    def __init__(self, name: str, split: str = "train", data_dir: str = ""):
        """Opens it.

        Args:
            name: TFDS's name, with config and version if wanted ("name/config:1.0.0"), and "@SPLIT" to replace `split`.
            split: in TFDS's syntax: "train", "test[:10%]", ...
            data_dir: where it was prepared; "" is TFDS's default folder.

        Raises:
            UserError: TFDS knows no such builder, it is not prepared as ArrayRecord, or it has no such split.
        """
        name, _, own = name.removeprefix(PREFIX).partition("@")
        self._name, self._source = f"{PREFIX}{name}", _open(name, own or split, data_dir)

    def __len__(self) -> int:
        return len(self._source)

    def files(self) -> list:
        """The paths that the split's records are read from: its record files, and the two files that describe them."""
        shards = [paths.of(instruction.filename) for instruction in self._source.data_source.instructions]
        told = [shards[0].parent / name for name in ("dataset_info.json", "features.json")] if shards else []
        return [*told, *shards]

    def where(self, i: int) -> str:
        """The i-th record's name in messages."""
        return f"{self._name}, record {i}"

    def read(self, indices: Iterable[int]) -> list[tuple[str, dict]]:
        """(name, record) of each record at these indices, as `sources.read_jsonl` gives those of a file.

        Raises: UserError if a file is damaged or gone.
        """
        indices = [int(i) for i in indices]
        try:
            records = self._source.__getitems__(indices)
        except ModuleNotFoundError as error:
            raise _needs(self._name, error) from None
        except Exception as error:  # noqa: BLE001 - ArrayRecord's words for damaged files, and TFDS's for records of other features
            raise UserError(f"{self._name}: its files cannot be read ({_short(error)}); prepare it again") from None
        return [(self.where(i), _plain(record)) for i, record in zip(indices, records, strict=True)]

    def records(self, max_records: int = 0) -> Iterator[tuple[str, dict]]:
        """(name, record) of all records, or of the first `max_records`, in order."""
        number = min(len(self), max_records or len(self))
        for start in range(0, number, _CHUNK):
            yield from self.read(range(start, min(start + _CHUNK, number)))


class _Files:
    """The serialised records of a split's ArrayRecord files, by number, for TFDS to read from.

    ArrayRecord's own data source asks a file for a list of positions. That costs time and memory in proportion to all records of the file,
    however few are asked for: 10 ms and 24 MB in a file of a million. Ranges of one record do not.
    """

    def __init__(self, instructions: Sequence):
        """instructions: TFDS's for the split: files, and the records to skip and to take in each."""
        self.instructions = instructions
        self._ends = list(itertools.accumulate(instruction.take for instruction in instructions))
        self._readers: list = [None] * len(instructions)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, i: int) -> bytes:
        number = bisect.bisect_right(self._ends, i)
        place = i - (self._ends[number - 1] if number else 0) + self.instructions[number].skip
        return self._reader(number).read(place, place + 1)[0]

    def __getitems__(self, indices: Iterable[int]) -> list[bytes]:
        return [self[i] for i in indices]

    def _reader(self, number: int):
        """A file's reader, opened on first use. Only one is opened at a time, since reading its index takes memory."""
        with self._lock:
            if self._readers[number] is None:
                from array_record.python import array_record_module

                file = self.instructions[number]
                reader = array_record_module.ArrayRecordReader(
                    file.filename, options="readahead_buffer_size:0", file_reader_buffer_size=32768)
                if reader.num_records() != file.examples_in_shard:
                    raise RuntimeError(f"{file.filename} has {reader.num_records()} records, not {file.examples_in_shard}")
                self._readers[number] = reader
            return self._readers[number]


def _open(name: str, split: str, data_dir: str):
    """TFDS's data source of a split, made only from the prepared files. Imports neither a dataset's code nor what its files name."""
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder
    except ModuleNotFoundError:
        raise UserError(f"{PREFIX}{name}: TFDS is not installed; pip install tensorflow_datasets array_record") from None
    where = data_dir or "TFDS's default folder"
    try:
        with _own_features(tfds.features.FeatureConnector, f"{PREFIX}{name} in {where}"):
            builder = read_only_builder.builder_from_files(name, data_dir=data_dir or None, file_format="array_record")
            source = builder.as_data_source(split=split)
        source.data_source = _Files(source.dataset_info.splits[split].file_instructions)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise _needs(f"{PREFIX}{name}", error) from None
    except Exception as error:  # noqa: BLE001 - TFDS's words for what is not prepared, or not as ArrayRecord, and for damaged files
        raise UserError(
            f"{PREFIX}{name}, split {split!r}: not found prepared as array_record in {where} ({_short(error)}); prepare it with "
            f"tfds.builder({name!r}, file_format='array_record').download_and_prepare(), or see data.tfds_data_dir"
        ) from None
    return source


def _own_features(connector, where: str) -> contextlib.AbstractContextManager[None]:
    """While entered, TFDS makes features only of its own classes. Otherwise it imports any module that a features.json names.

    Raises: UserError if a prepared folder names another class.
    """

    def cls_from_name(_, wanted: str):
        found = connector._registered_features.get(wanted)
        if found is None or not found.__module__.startswith("tensorflow_datasets."):
            raise UserError(f"{where}: its features.json names the class {wanted[:80]!r}, which is none of TFDS's own features and is "
                            "not imported; prepare it again with features of tfds.features")
        return found

    return foreign.replaced(connector, "cls_from_name", classmethod(cls_from_name))


def _needs(name: str, error: ModuleNotFoundError) -> UserError:
    return UserError(f"{name}: reading it needs the module {error.name}; pip install {error.name}")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _plain(record: Mapping) -> dict:
    """A record as JSON would have it, as far as it matters here. TFDS keeps a list of turns as one list per field."""
    turns = record.get("messages")
    if not isinstance(turns, Mapping):
        return dict(record)
    columns = [[_text(value) for value in column] for column in turns.values()]
    return {**record, "messages": [dict(zip(turns, row, strict=True)) for row in zip(*columns, strict=True)]}


def _text(value):
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value
