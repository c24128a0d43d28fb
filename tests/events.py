"""TensorBoard's event files, read by their format: for tests."""

import pathlib
import struct

from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c


def of_file(path) -> list:
    """The events of one file; every checksum must be right and no record cut short."""
    content, at, events = pathlib.Path(path).read_bytes(), 0, []
    while at < len(content):
        size, check = struct.unpack_from("<QI", content, at)
        data = content[at + 12 : at + 12 + size]
        assert masked_crc32c(content[at : at + 8]) == check and len(data) == size
        assert masked_crc32c(data) == struct.unpack_from("<I", content, at + 12 + size)[0]
        events.append(event_pb2.Event.FromString(data))
        at += size + 16
    return events


def rows(folder) -> list[tuple[int, dict]]:
    """(step, {tag: value}) of every event with scalars in a stage's folder, file by file."""
    files = sorted(path for path in pathlib.Path(folder).iterdir() if "tfevents" in path.name)
    return [(event.step, {value.tag: value.simple_value for value in event.summary.value})
            for file in files for event in of_file(file) if event.HasField("summary")]
