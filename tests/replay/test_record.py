from __future__ import annotations

import itertools
import zlib
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_zmq.replay import record
from apex_zmq.types import TRANSITION, FrameSpec, Segment, Shipment, UInt8s

from ..transitions import make_transitions

STACK, N_STEP = 2, 3
LOG_ID, FIRST_KEY, OLDEST_KEY = 0xC0FFEE, 1000, 990
OFFSET = 3 * record.UNIT  # of the record in the arena


class Written(NamedTuple):
    """A record in an arena, and what it was made of."""

    arena: UInt8s
    record: UInt8s
    shipment: Shipment
    frames: list[bytes]


@st.composite
def written(draw: st.DrawFn) -> Written:
    steps = draw(st.lists(st.integers(1, N_STEP), min_size=1, max_size=12))
    frames = draw(st.lists(st.binary(min_size=1, max_size=50), min_size=STACK + N_STEP, max_size=20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = len(steps)
    transitions = make_transitions(
        count,
        reward=rng.normal(size=count),
        discount=rng.random(count),
        td_error=rng.random(count),
        window_crc=rng.integers(0, 2**32, count),
        first=[rng.integers(0, len(frames) - STACK - k + 1) for k in steps],
        action=rng.integers(0, 2**16, count),
        steps=steps,
    )
    segment = Segment(
        frame=FrameSpec((84, 84), "uint8", STACK),
        frames=b"".join(frames),
        frame_sizes=np.array([len(frame) for frame in frames], np.uint32),
        frame_crcs=np.array([zlib.crc32(frame) for frame in frames], np.uint32),
        transitions=transitions,
    )
    shipment = Shipment(draw(st.text(max_size=9)), 2**62 + 1, 7, segment)
    size = record.size_of(count, len(frames), len(shipment.actor.encode()), len(segment.frames))
    arena = np.full(OFFSET + size + record.UNIT, 0xA5, np.uint8)
    place = arena[OFFSET : OFFSET + size]
    ends = np.cumsum([0, *segment.frame_sizes]).astype(np.uint32)
    record.write(place, shipment, ends, LOG_ID, FIRST_KEY, OLDEST_KEY)
    return Written(arena, place, shipment, frames)


@given(written())
@settings(deadline=None)
def test_a_record_holds_its_shipment(made: Written) -> None:
    found = record.at(made.arena, OFFSET)
    assert found is not None
    assert len(found) == len(made.record)
    assert len(found) % record.UNIT == 0
    assert record.frames_valid(found)
    assert record.actor_of(found) == made.shipment.actor
    np.testing.assert_array_equal(record.transitions_of(found), made.shipment.segment.transitions)
    header = record.header_of(found)
    assert (header["log_id"], header["first_key"], header["oldest_key"]) == (LOG_ID, FIRST_KEY, OLDEST_KEY)
    assert (header["incarnation"], header["sequence"]) == (made.shipment.incarnation, made.shipment.sequence)
    assert (made.arena[:OFFSET] == 0xA5).all(), "written before the record"
    assert (made.arena[OFFSET + len(found) :] == 0xA5).all(), "written behind the record"


@given(written(), st.data())
@settings(deadline=None)
def test_rows_are_read_with_their_windows(made: Written, data: st.DataObject) -> None:
    expected = made.shipment.segment.transitions
    rows = np.array(data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=20)))
    count = len(rows)
    transitions = np.empty(count, TRANSITION)
    frame_sizes, begins = np.zeros((count, STACK + N_STEP), np.uint32), np.empty(count, np.int64)
    headers = made.arena.view(record.HEADER)
    offsets = np.full(count, OFFSET, np.int64)
    record.read_rows(made.arena, headers, offsets, FIRST_KEY + rows, STACK, transitions, frame_sizes, begins)
    np.testing.assert_array_equal(transitions, expected[rows])
    window_bytes = frame_sizes.sum(axis=1, dtype=np.int64)
    copied = np.empty(int(window_bytes.sum()), np.uint8)
    record.copy_windows(made.arena, begins, window_bytes, copied)
    borders = itertools.pairwise(itertools.accumulate(window_bytes.tolist(), initial=0))
    for j, (start, stop) in enumerate(borders):
        first, length = int(transitions[j]["first"]), STACK + int(transitions[j]["steps"])
        window = made.frames[first : first + length]
        assert frame_sizes[j].tolist() == [*map(len, window), *[0] * (STACK + N_STEP - length)]
        assert copied[start:stop].tobytes() == b"".join(window)


@given(written(), st.data())
@settings(deadline=None)
def test_a_flipped_bit_is_noticed(made: Written, data: st.DataObject) -> None:
    end = record.layout_of(made.record).frames + len(made.shipment.segment.frames)
    made.record[data.draw(st.integers(0, end - 1))] ^= 1 << data.draw(st.integers(0, 7))
    found = record.at(made.arena, OFFSET)
    assert found is None or not record.frames_valid(found)


@given(written())
@settings(deadline=None, max_examples=20)
def test_a_record_of_another_format_or_cut_off_is_none(made: Written) -> None:
    assert record.at(made.arena[: OFFSET + len(made.record) - record.UNIT], OFFSET) is None
    assert record.at(made.arena, 0) is None
    made.record[:4] = np.frombuffer(b"APX1", np.uint8)
    assert record.at(made.arena, OFFSET) is None


@pytest.mark.parametrize("transitions", [1, 3, 1000])
def test_a_tombstone_has_rows_of_zeros_and_no_frames(transitions: int) -> None:
    arena = np.full(record.size_of(transitions, 0, 0, 0), 0xA5, np.uint8)
    record.write_tombstone(arena, transitions, LOG_ID, FIRST_KEY, OLDEST_KEY)
    found = record.at(arena, 0)
    assert found is not None
    assert record.frames_valid(found)
    header = record.header_of(found)
    assert (header["transitions"], header["frames"], header["first_key"]) == (transitions, 0, FIRST_KEY)
    np.testing.assert_array_equal(record.transitions_of(found), np.zeros(transitions, TRANSITION))
