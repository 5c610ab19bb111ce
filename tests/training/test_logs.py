import json
import struct

import pytest
from tensorboardX.proto import event_pb2

from fmjax.training import RunLogger, read_metrics


def events(folder):
    """`(step, tag, value)` of every point, in order, from TensorBoard's record files."""
    for path in sorted((folder / "events").iterdir()):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = event_pb2.Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length
            for value in event.summary.value:
                yield event.step, value.tag, value.simple_value


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_numbers_stand_in_both_places(tmp_path):
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


def test_after_rewinding_no_step_stands_twice(tmp_path):
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


def test_a_line_that_was_cut_off_goes(tmp_path):
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


def test_damaged_lines_are_left_out_and_said_once(tmp_path):
    good = ['{"step": 1, "loss": 1.5}', '{"step": 2, "loss": NaN}', '{"step": 3, "loss": 0.5}']
    path = tmp_path / "metrics.jsonl"
    lines = [good[0], *BAD_LINES, good[1], good[2], '{"step": 5, "lo']
    path.write_bytes("\n".join(lines).encode("latin-1"))
    with pytest.warns(UserWarning, match=r"jsonl has 14 damaged lines.*: line 2 must") as said:
        found = read_metrics(path)
    assert [line["step"] for line in found] == [1, 2, 3]
    assert len(said) == 1
    logger = RunLogger(tmp_path)
    with pytest.warns(UserWarning, match="14 damaged lines"):
        logger.rewind(2)
    assert [line["step"] for line in read_metrics(path)] == [1, 2]  # Gone, and not said again.


@pytest.mark.parametrize("step", [0, 3])
def test_rewinding_a_run_without_lines_makes_no_file(tmp_path, step):
    RunLogger(tmp_path / "run").rewind(step)
    assert not (tmp_path / "run").exists()
