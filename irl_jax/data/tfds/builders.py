"""TFDS builders of this project's files: demonstrations and preference pairs from JSONL, and HH-RLHF transcripts.

    builders.Demonstrations(files={"train": "d.jsonl.gz"}, data_dir="DIR").download_and_prepare()
    tfds.data_source("demonstrations", split="train", data_dir="DIR")

The second line needs nothing from this module. Records are written one after the other, in the files' own order, so a file may be larger
than memory. TFDS's own writer would hold up to a gigabyte of them for shuffling, and more than that only with TensorFlow. Records are
shuffled when they are read.
"""

from __future__ import annotations

import abc
import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator

import tensorflow_datasets as tfds

from irl_jax.config import default
from irl_jax.data import sources
from irl_jax.errors import UserError

RECORDS_A_SHARD = 1_000_000
_BUFFER = 1000  # records serialised together
_TURN = ("role", "content")


def _texts(*names: str) -> tfds.features.FeaturesDict:
    return tfds.features.FeaturesDict({name: tfds.features.Text() for name in names})


class _Lines(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # TFDS ships no types
    """A builder from files, one per split, that writes records as it reads them.

    files: {split: path of a JSONL file, plain or gzip}. fields: names of the fields in the files, as `config.data.fields`; None takes
    those of the default config. counts: number of records left out, by reason, and of "records" written.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, files: dict[str, str], fields=None, **how):
        self.files, self.fields = dict(files), fields or default().data.fields
        self.counts: Counter[str] = Counter()
        super().__init__(**how, file_format="array_record")

    @abc.abstractmethod
    def _features(self) -> tfds.features.FeaturesDict:
        """The features of a record."""

    @abc.abstractmethod
    def _rows(self, records) -> Iterator[dict]:
        """Checked records in the features' form, from what `sources.read_jsonl` yields."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=self._features())

    def _split_generators(self, dl_manager) -> dict:
        return {split: self._generate_examples(path) for split, path in self.files.items()}

    def _generate_examples(self, path: str) -> Iterator[tuple[int, dict]]:
        yield from enumerate(self._rows(sources.read_jsonl(path)))

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        info = self._info()  # of the folder being filled; self.info is of the final one
        writer = tfds.core.SequentialWriter(info, RECORDS_A_SHARD, file_format="array_record")
        splits = self._split_generators(dl_manager)
        writer.initialize_splits(list(splits))
        for split, examples in splits.items():
            before = self.counts["records"]
            while buffer := [example for _, example in itertools.islice(examples, _BUFFER)]:
                with _refusals():
                    writer.add_examples({split: buffer})
                self.counts["records"] += len(buffer)
            if self.counts["records"] == before:
                raise UserError(f"{self.files[split]}: no record in it can be used; give a file with records")
        with _refusals():
            writer.close_all()
        self.info.set_splits(info.splits)


@contextlib.contextmanager
def _refusals():
    """Turns the error of ArrayRecord's writer on a full disk into the system's error."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error).split(";")[0]) from None


class Demonstrations(_Lines, skip_registration=True):  # type: ignore[call-arg]  # TFDS ships no types
    """Prompts with good responses, or conversations. All records must be of the same kind as the first record of the first file."""

    name = "demonstrations"

    def _features(self) -> tfds.features.FeaturesDict:
        if not self._chat():
            return _texts("prompt", "response")
        return tfds.features.FeaturesDict({"messages": tfds.features.Sequence({name: tfds.features.Text() for name in _TURN})})

    def _chat(self) -> bool:
        first = next(iter(self.files.values()))
        return any(self._read(where, record).turns for where, record in sources.read_jsonl(first, 1))

    def _read(self, where: str, record: dict) -> sources.Reading:
        return sources.read_record(record, where, self.fields)

    def _rows(self, records) -> Iterator[dict]:
        chat = self._chat()
        for where, record in records:
            reading = self._read(where, record)
            if bool(reading.turns) != chat:
                raise UserError(f"{where}: field {'messages' if not chat else self.fields.response!r} where the first record has "
                                f"{'messages' if chat else 'prompt and response'}; prepare the two kinds apart")
            yield {"messages": _turns(reading, where)} if chat else {"prompt": reading.prompt, "response": reading.answer}


class Preferences(_Lines, skip_registration=True):  # type: ignore[call-arg]  # TFDS ships no types
    """Two responses to a prompt, one of them preferred."""

    name = "preferences"

    def _features(self) -> tfds.features.FeaturesDict:
        return _texts("prompt", "chosen", "rejected")

    def _rows(self, records) -> Iterator[dict]:
        for row in self._compared(records):
            assert row.pair is not None  # both versions of _compared give pairs
            yield {"prompt": row.prompt, "chosen": row.pair[0], "rejected": row.pair[1]}

    def _compared(self, records) -> Iterator[sources.Row]:
        return sources.pair_rows(records, self.fields, _texts_only, pairs_only=True)


class HhRlhf(Preferences, skip_registration=True):  # type: ignore[call-arg]  # TFDS ships no types
    """HH-RLHF transcripts as Anthropic publishes them, cut into prompt, chosen and rejected. `counts` has the unusable ones."""

    name = "hh_rlhf"

    def _compared(self, records) -> Iterator[sources.Row]:
        return sources.hh_rows(records, self.fields, self.counts)


def _texts_only(messages: list, sampled: bool = False) -> tuple[str, str]:
    raise UserError("a prepared pair has no 'messages', only prompt, chosen and rejected; leave them out, or read the file itself")


def _turns(reading: sources.Reading, where: str) -> list[dict]:
    """A record's conversation. Refuses turns with more than a builder's turns have, since the template might have used it."""
    answer = reading.answer if isinstance(reading.answer, dict) else {"role": "assistant", "content": reading.answer}
    turns = [*reading.turns, answer]
    for number, turn in enumerate(turns, 1):
        more = [name for name in turn if name not in _TURN]
        if more:
            raise UserError(f"{where}: turn {number} of field 'messages' has {more[0]!r} beside role and content, which a prepared "
                            "record does not keep; leave it out, or read the file itself")
    return turns


BUILDERS = {"demonstrations": Demonstrations, "preferences": Preferences, "hh": HhRlhf}
