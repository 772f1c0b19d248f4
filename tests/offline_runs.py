"""What W&B keeps of a run that was offline, read back."""

import json
import struct
import time
from pathlib import Path

PATIENCE = 30
"""Seconds that W&B's service may take to write the end of a run, which it does after the run has ended."""


def offline_records(run_dir):
    """Records of each offline run that has ended."""
    return [_whole(path) for path in sorted((Path(run_dir) / "wandb").glob("offline-run-*/run-*.wandb"))]


def _whole(path):
    deadline = time.monotonic() + PATIENCE
    while not of_kind(records := _records(path), "exit"):
        assert time.monotonic() < deadline, f"{path} has no end after {PATIENCE} seconds: {len(records)} records"
        time.sleep(0.1)
    return records


def _records(path):
    """LevelDB's log format with W&B's header, each record one protobuf message; what is half written is left out."""
    from wandb.proto import wandb_internal_pb2

    data, position, part, records = path.read_bytes(), 7, b"", []
    assert data[:4] in (b":W&B", b"")
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # no header fits: the block's end is padding
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if position + 7 + length > len(data):
            break
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return records


def of_kind(records, kind):
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def as_dict(items):
    return {".".join([item.key, *item.nested_key]).strip("."): json.loads(item.value_json) for item in items}
