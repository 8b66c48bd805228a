"""CRC-32 (zlib's polynomial) of frames and windows: computed by the actor, verified by replay and learner."""

from __future__ import annotations

import functools
import logging
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types

from apex_zmq.types import Buffer, Int64s, UInt8s, UInt32s
from apex_zmq.wire.native import exported

log = logging.getLogger(__name__)
Kernel = Callable[[UInt8s, Int64s, Int64s, UInt32s], None]


def frame_crc(encoded: Buffer) -> int:
    """CRC-32 of an encoded frame."""
    return zlib.crc32(encoded)


def frame_crcs(frames: Buffer, sizes: UInt32s) -> UInt32s:
    """CRC-32 of each encoded frame, uint32 [F].

    Args:
        frames: encoded frames, concatenated; its length is the sum of `sizes`.
        sizes: [F] bytes of each frame.
    """
    lengths = sizes.astype(np.int64)
    ends = lengths.cumsum()
    found = np.empty(len(sizes), np.uint32)
    _kernel()(np.frombuffer(frames, np.uint8), ends - lengths, ends, found)
    return found


def window_crcs(
    frame_crcs: UInt32s, first: npt.NDArray[np.integer[Any]], steps: npt.NDArray[np.uint8], stack: int
) -> UInt32s:
    """CRC-32 of each transition's window, uint32 [T]: over its frames' CRC-32s as little-endian u32, in order.

    Args:
        frame_crcs: [F] CRC-32 of each frame of a segment.
        first: [T] index of the first frame of each window, first + steps + stack <= F.
        steps: [T] k; a window has stack + k frames.
        stack: s.
    """
    begins = first.astype(np.int64)
    return _crcs_of_crcs(frame_crcs, begins, begins + steps + stack)


def corrupted_windows(frames: Buffer, sizes: UInt32s, window_crcs: UInt32s) -> npt.NDArray[np.bool_]:
    """Verify the windows of a batch.

    Args:
        frames: encoded frames, concatenated row by row; its length is the sum of `sizes`.
        sizes: [B, W] bytes of each frame; 0 where a short window is padded.
        window_crcs: [B] as returned by `window_crcs`.

    Returns:
        bool [B], True where the CRC-32 differs.
    """
    crcs = frame_crcs(frames, sizes[sizes > 0])
    lengths = (sizes > 0).sum(axis=1, dtype=np.int64)
    ends = lengths.cumsum()
    return np.not_equal(_crcs_of_crcs(crcs, ends - lengths, ends), window_crcs)


def _crcs_of_crcs(crcs: UInt32s, begins: Int64s, ends: Int64s) -> UInt32s:
    """Return uint32 [N]: CRC-32 over crcs[begins[i] : ends[i]] as little-endian u32."""
    found = np.empty(len(begins), np.uint32)
    _kernel()(crcs.astype("<u4").view(np.uint8), 4 * begins, 4 * ends, found)
    return found


def _crcs_in_python(data: UInt8s, begins: Int64s, ends: Int64s, found: UInt32s) -> None:
    """Fill found[i] with the CRC-32 of data[begins[i] : ends[i]]; holds the GIL."""
    view = data.data
    for i, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
        found[i] = zlib.crc32(view[begin:end])


def _compiled_kernel() -> Kernel:
    """Compile `_crcs_in_python` with ISA-L's CRC-32, which uses the processor's carry-less multiplication.

    Raises:
        OSError, AttributeError: the isal wheel is missing or does not export the function.
    """
    crc32 = exported("isal.isal_zlib", "crc32_gzip_refl", types.uint32(types.uint32, types.voidptr, types.uint64))

    @njit(nogil=True, cache=True)
    def crcs(data: UInt8s, begins: Int64s, ends: Int64s, found: UInt32s) -> None:
        for i in range(len(begins)):
            piece = data[begins[i] : ends[i]]
            found[i] = crc32(np.uint32(0), piece.ctypes, np.uint64(piece.size))

    return crcs


@functools.cache
def _kernel() -> Kernel:
    """Return the compiled kernel if its result is correct, else the Python one."""
    try:
        kernel = _compiled_kernel()
        found = np.empty(1, np.uint32)
        kernel(np.frombuffer(b"-123456789", np.uint8), np.array([1]), np.array([10]), found)
        if found[0] == 0xCBF43926:  # the check value of CRC-32
            return kernel
        log.warning("ISA-L's crc32_gzip_refl returns wrong values; verifying windows in Python, which is slower")
    except Exception as error:  # linker and compiler may raise anything
        log.warning("no compiled checksum kernel (%s); verifying windows in Python, which is slower", error)
    return _crcs_in_python
