"""How far a record has come, who may write to it, and what TensorBoard's files hold after rounds that were killed."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_trainer.trackers.backend import Fence, Fenced, Run
from llmtrain_trainer.trackers.blocklog import BlockLog
from llmtrain_trainer.trackers.files import Curves
from llmtrain_trainer.trackers.points import Point
from llmtrain_trainer.trackers.tensorboard import TensorBoard
from llmtrain_trainer.trackers.wandb import DELAY, Delayed
from tests.support import tracked

BLOCK = 32 * 1024


def _run(number: int, uid: str = "abc") -> Run:
    return Run(uid, "j", number, {"job": "default/j"})


def _points(first: int, last: int) -> list[Point]:
    return [Point(step, 1e9 + step, {"train/loss": float(step), "job/round": 1.0}) for step in range(first, last + 1)]


def test_a_killed_round_is_followed_without_a_gap(tmp_path):
    """The next one learns what the files have, a torn tail not counted, and writes what is beyond."""
    first = TensorBoard(tmp_path)
    assert first.begin(_run(1)) == 0
    first.log(_points(1, 5))
    assert first.kept() == 5
    [file] = tmp_path.glob("events*")
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 3)  # killed in the middle of a write
    second = TensorBoard(tmp_path)
    assert second.begin(_run(2)) == 4
    second.log(_points(5, 9))
    second.finish()
    third = TensorBoard(tmp_path)  # a round that logs nothing hides nothing
    assert third.begin(_run(3)) == 9
    assert TensorBoard(tmp_path).begin(_run(4)) == 9
    record = tracked.tensorboard(tmp_path)
    assert [step for step, name, _ in record if name == "train/loss"] == list(range(1, 10))


def test_another_job_in_the_same_folder_is_another_run(tmp_path):
    """What one has written says nothing of the other."""
    first = TensorBoard(tmp_path)
    first.begin(_run(1))
    first.log(_points(1, 5))
    assert TensorBoard(tmp_path).begin(_run(1, "def")) == 0


def test_a_leftover_of_an_older_round_writes_nothing(tmp_path):
    """Neither one that was there before the newer round began, nor one that begins after it."""
    leftover = TensorBoard(tmp_path)
    leftover.begin(_run(1))
    TensorBoard(tmp_path).begin(_run(2))
    with pytest.raises(Fenced, match="round 2 writes to"):
        leftover.log(_points(1, 1))
    with pytest.raises(Fenced, match="round 2 writes to"):
        Fence(tmp_path, _run(1)).raise_to_this_round()
    Fence(tmp_path, _run(2)).raise_to_this_round()


def _log(records: list[bytes]) -> bytes:
    """As LevelDB's format says, written independently of the reader."""
    out = bytearray(b":SWL\xd6\xe1\x02")
    for record in records:
        rest, first = record, True
        while True:
            room = BLOCK - len(out) % BLOCK
            if room < 7:
                out += bytes(room)
                room = BLOCK
            part, rest = rest[: room - 7], rest[room - 7 :]
            kind = (1 if first else 4) if not rest else (2 if first else 3)
            out += struct.pack("<IHB", zlib.crc32(bytes([kind]) + part), len(part), kind) + part
            first = False
            if not rest:
                break
    return bytes(out)


@given(st.lists(st.integers(0, 3 * BLOCK), max_size=8), st.lists(st.floats(0, 1), max_size=4))
def test_a_growing_log_gives_each_whole_record_once(lengths, cuts):
    """Whatever part of it is there at each look, and over blocks' borders."""
    records = [bytes([number + 1]) * length for number, length in enumerate(lengths)]
    whole = _log(records)
    file = io.BytesIO()
    log, found = BlockLog(file), []
    for end in [*sorted(round(cut * len(whole)) for cut in cuts), len(whole)]:
        file.seek(0, io.SEEK_END)
        file.write(whole[file.tell() : end])
        found += log.records()
        assert found == records[: len(found)]
    assert found == records


def test_a_damaged_record_ends_the_log():
    """Nothing behind it is believed."""
    data = bytearray(_log([b"one", b"two", b"three"]))
    data[7 + 10 + 7] ^= 1
    assert list(BlockLog(io.BytesIO(data)).records()) == [b"one"]


def test_of_a_step_that_is_there_in_part_the_rest_is_added():
    """Curves are written one by one, and the process may be killed in between."""
    curves = Curves({"train/loss": 7, "train/epoch": 6, "validation/loss": 4})
    assert curves.whole == 6
    values = {"train/loss": 1.0, "train/epoch": 2.0, "validation/loss": 3.0}
    assert curves.lacking(Point(7, 0.0, values)) == {"train/epoch": 2.0, "validation/loss": 3.0}
    assert curves.lacking(Point(8, 0.0, values)) == values
    assert Curves({}).whole == 0


def test_what_went_to_a_server_counts_as_kept_after_a_while():
    """There is nobody to ask whether it has arrived."""
    delayed = Delayed(3)
    delayed.logged(5, 100.0)
    delayed.logged(6, 101.0)
    assert [delayed.kept(99.0 + DELAY), delayed.kept(100.0 + DELAY), delayed.kept(101.0 + DELAY)] == [3, 5, 6]
