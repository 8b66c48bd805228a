from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_zmq.types import Batch
from apex_zmq.wire import checksums
from apex_zmq.wire.checksums import corrupted_windows, frame_crc, frame_crcs, window_crcs


def by_definition(blocks: list[bytes]) -> int:
    """The CRC-32 over the ordered CRC-32s of a window's frames, computed by zlib."""
    return zlib.crc32(b"".join(zlib.crc32(block).to_bytes(4, "little") for block in blocks))


def test_the_check_value_of_crc_32() -> None:
    assert frame_crc(b"123456789") == 0xCBF43926


def test_the_compiled_kernel_is_in_use() -> None:
    assert checksums._kernel() is not checksums._crcs_in_python


@pytest.mark.parametrize("kernel", [checksums._kernel(), checksums._crcs_in_python])
@given(st.integers(0, 2**32), st.integers(0, 20), st.integers(0, 700))
def test_both_kernels_compute_zlibs_crc_32(kernel: checksums.Kernel, seed: int, begin: int, size: int) -> None:
    data = np.random.default_rng(seed).integers(0, 256, begin + size + 9, np.uint8)
    data.flags.writeable = bool(seed % 2)
    begins, ends = np.array([begin, 0, begin]), np.array([begin + size, begin, begin])
    found = np.empty(3, np.uint32)
    kernel(data, begins, ends, found)
    assert found.tolist() == [zlib.crc32(data[a:b].tobytes()) for a, b in zip(begins, ends, strict=True)]


def test_python_kernel_is_used_without_the_library(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def not_exported(*_: object) -> None:
        raise AttributeError("undefined symbol: crc32_gzip_refl")

    monkeypatch.setattr(checksums, "exported", not_exported)
    assert checksums._kernel.__wrapped__() is checksums._crcs_in_python
    assert "undefined symbol: crc32_gzip_refl" in caplog.text


@settings(max_examples=50)
@given(st.lists(st.lists(st.binary(min_size=1, max_size=70), max_size=6), min_size=1, max_size=4))
def test_corrupted_windows_matches_crc_32_by_definition(rows: list[list[bytes]]) -> None:
    width = max(1, *map(len, rows))
    sizes = np.array([[len(block) for block in row] + [0] * (width - len(row)) for row in rows], np.uint32)
    expected = np.array([by_definition(row) for row in rows], np.uint32)
    frames = b"".join(block for row in rows for block in row)
    assert not corrupted_windows(frames, sizes, expected).any()
    assert corrupted_windows(frames, sizes, expected ^ np.uint32(1 << 17)).all()


@settings(max_examples=50)
@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=6))
def test_frame_checksums_match_zlib(frames: list[bytes]) -> None:
    sizes = np.array([len(frame) for frame in frames], np.uint32)
    assert frame_crcs(b"".join(frames), sizes).tolist() == [zlib.crc32(frame) for frame in frames]


def test_actor_checksums_cover_whole_windows() -> None:
    frames = [bytes([number]) * (number + 1) for number in range(9)]
    crcs = np.array([zlib.crc32(frame) for frame in frames], np.uint32)
    made = window_crcs(crcs, np.array([0, 1, 4]), np.array([3, 1, 2], np.uint8), stack=2)
    assert made.tolist() == [by_definition(frames[begin:end]) for begin, end in ((0, 5), (1, 4), (4, 8))]


def test_flipped_bit_and_checksum_of_another_window_are_detected(batches: dict[str, Batch]) -> None:
    sample = batches["lz4"].sample
    sizes, crcs, frames = sample.frame_sizes, sample.transitions["window_crc"], bytearray(sample.frames)
    assert not corrupted_windows(frames, sizes, crcs).any()
    ends = np.cumsum(sizes.sum(axis=1))
    frames[int(ends[2]) - 1] ^= 4
    assert np.flatnonzero(corrupted_windows(frames, sizes, crcs)).tolist() == [2]
    other = np.roll(crcs, 1)
    wrong = corrupted_windows(sample.frames, sizes, other)
    np.testing.assert_array_equal(wrong, other != crcs)
    assert wrong.any()
