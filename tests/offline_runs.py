"""What W&B keeps of a run that was offline, read back."""

import json
import struct
from pathlib import Path


def offline_records(run_dir):
    """Records of each offline run: LevelDB's log format with W&B's header, each record one protobuf message."""
    from wandb.proto import wandb_internal_pb2

    runs = []
    for path in sorted((Path(run_dir) / "wandb").glob("offline-run-*/run-*.wandb")):
        data, position, part, records = path.read_bytes(), 7, b"", []
        assert data[:4] == b":W&B"
        while position + 7 <= len(data):
            if 32768 - position % 32768 < 7:  # no header fits: the block's end is padding
                position += 32768 - position % 32768
                continue
            _, length, kind = struct.unpack_from("<IHB", data, position)
            part += data[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):  # a whole record, or the last part of one
                records.append(wandb_internal_pb2.Record.FromString(part))
                part = b""
        runs.append(records)
    return runs


def of_kind(records, kind):
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def as_dict(items):
    return {".".join([item.key, *item.nested_key]).strip("."): json.loads(item.value_json) for item in items}
