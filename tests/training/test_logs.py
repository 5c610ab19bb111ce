"""Tests of the metrics logs: JSON lines and TensorBoard events."""

import json
import struct

import pytest
from tensorboardX.proto import event_pb2

from fmjax.training import RunLogger, read_metrics


def events(folder):
    """Yield (step, tag, value) of every point in TensorBoard's record files, in order."""
    for file in sorted((folder / "events").iterdir()):
        data, offset = file.read_bytes(), 0
        while offset < len(data):
            (length,) = struct.unpack_from("<Q", data, offset)
            event = event_pb2.Event.FromString(data[offset + 12 : offset + 12 + length])
            offset += 16 + length
            for value in event.summary.value:
                yield event.step, value.tag, value.simple_value


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_written_as_lines_and_events(tmp_path):
    with RunLogger(tmp_path / "run") as logger:
        logger.log(1, {"loss": 2.0, "grad_norm": 0.5})
        logger.log(10, {"loss": 1.25})
    assert lines(tmp_path / "run") == [
        {"step": 1, "loss": 2.0, "grad_norm": 0.5},
        {"step": 10, "loss": 1.25},
    ]
    assert list(events(tmp_path / "run")) == [
        (1, "loss", 2.0),
        (1, "grad_norm", 0.5),
        (10, "loss", 1.25),
    ]


def test_rewinding_prevents_duplicate_steps(tmp_path):
    with RunLogger(tmp_path) as logger:
        for step in (5, 10, 15):
            logger.log(step, {"loss": float(step)})
    with RunLogger(tmp_path) as logger:
        logger.rewind(10)
        logger.log(15, {"loss": 0.0})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (5, 5.0),
        (10, 10.0),
        (15, 0.0),
    ]


def test_rewinding_removes_a_truncated_line(tmp_path):
    with RunLogger(tmp_path) as logger:
        logger.log(5, {"loss": 5.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    logger = RunLogger(tmp_path)
    logger.rewind(6)
    assert [line["step"] for line in lines(tmp_path)] == [5]


BAD_LINES = (
    "null",
    "[]",
    '"x"',
    "3",
    "{}",
    '{"step": "4"}',
    '{"step": -1}',
    '{"step": 4, "loss": "x"}',
    '{"step": 4, "loss": [1]}',
    '{"step": 4, "loss": 1e400}',
    '{"step": 4, "loss": 1',
    "[" * 100_000,
    '{"a":' * 100_000,
    "\xff\x00",
)


def test_damaged_lines_are_skipped_with_one_warning(tmp_path):
    good = ['{"step": 1, "loss": 1.5}', '{"step": 2, "loss": NaN}', '{"step": 3, "loss": 0.5}']
    file = tmp_path / "metrics.jsonl"
    content = [good[0], *BAD_LINES, good[1], good[2], '{"step": 5, "lo']
    file.write_bytes("\n".join(content).encode("latin-1"))
    with pytest.warns(UserWarning, match=r"jsonl has 14 damaged lines.*: line 2 must") as messages:
        metrics = read_metrics(file)
    assert [line["step"] for line in metrics] == [1, 2, 3]
    assert len(messages) == 1
    logger = RunLogger(tmp_path)
    with pytest.warns(UserWarning, match="14 damaged lines"):
        logger.rewind(2)
    assert [line["step"] for line in read_metrics(file)] == [1, 2]  # No second warning.


@pytest.mark.parametrize("step", [0, 3])
def test_rewinding_an_empty_run_creates_no_file(tmp_path, step):
    RunLogger(tmp_path / "run").rewind(step)
    assert not (tmp_path / "run").exists()
