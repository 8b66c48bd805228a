"""CRC-32 (zlib's polynomial) of frames and windows: made by the actor, checked by replay and learner."""

from __future__ import annotations

import zlib
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from apex_zmq.types import Buffer, Int64s, UInt8s, UInt32s, UInt64s

POLYNOMIAL = 0xEDB88320  # reflected
STRIDE = 16  # bytes per turn by tables
FOLDED = 64  # bytes per turn by folding
FOLD_BY_512 = (0x154442BD4, 0x1C6E41596)  # x^(512 + 32) and x^(512 - 32) mod P, reflected


def frame_crc(encoded: Buffer) -> int:
    """CRC-32 of an encoded frame."""
    return zlib.crc32(encoded)


def frame_crcs(frames: Buffer, sizes: UInt32s) -> UInt32s:
    """CRC-32 of each encoded frame, [F].

    Args:
        frames: encoded frames, concatenated; its length is the sum of `sizes`.
        sizes: [F] bytes of each.
    """
    found = np.empty(len(sizes), np.uint32)
    _frame_crcs(np.frombuffer(frames, np.uint8), sizes, found)
    return found


def window_crcs(frame_crcs: UInt32s, first: npt.NDArray[np.integer[Any]], steps: UInt8s, stack: int) -> UInt32s:
    """CRC-32 of each transition's window, [T]: over its frames' CRC-32s as little-endian u32, in the window's order.

    Args:
        frame_crcs: [F] of the frames of a segment.
        first: [T] index of the first frame of each window, first + steps + stack <= F.
        steps: [T] k; a window has stack + k frames.
        stack: s.
    """
    found = np.empty(len(first), np.uint32)
    crc_bytes = frame_crcs.astype("<u4").view(np.uint8)
    _segment_window_crcs(crc_bytes, first.astype(np.int64), steps.astype(np.int64), stack, found)
    return found


def corrupted_windows(frames: Buffer, sizes: UInt32s, window_crcs: UInt32s) -> npt.NDArray[np.bool_]:
    """Which windows of a batch are not what their actor sent.

    Args:
        frames: encoded frames, concatenated row by row; its length is the sum of `sizes`.
        sizes: [B, W] bytes of each; 0 in the places that a short window leaves free.
        window_crcs: [B] as `window_crcs` made them.

    Returns:
        [B] True where the CRC-32 is another.
    """
    found = np.empty(len(sizes), np.uint32)
    _window_crcs(np.frombuffer(frames, np.uint8), sizes, found)
    return np.not_equal(found, window_crcs)


def _tables() -> UInt32s:
    """[k, b]: what byte b adds to a CRC-32 when k bytes follow it (Kounavis and Berry 2005, "slicing")."""
    tables = np.zeros((STRIDE, 256), np.uint32)
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = np.where(crc & 1, (crc >> 1) ^ np.uint32(POLYNOMIAL), crc >> 1)
    tables[0] = crc
    for k in range(1, STRIDE):
        tables[k] = tables[0][tables[k - 1] & 255] ^ (tables[k - 1] >> 8)
    return tables


_TABLES = _tables()


@njit(nogil=True, cache=True)
def _update(crc: np.uint32, data: UInt8s, begin: int, end: int) -> np.uint32:
    """The register of a CRC-32 after these bytes."""
    tables = _TABLES
    whole = begin + (end - begin) // STRIDE * STRIDE
    for i in range(begin, whole, STRIDE):
        # The first four bytes meet the register; the others wait for nothing.
        next_crc = (
            tables[15, data[i] ^ (crc & np.uint32(255))]
            ^ tables[14, data[i + 1] ^ ((crc >> np.uint32(8)) & np.uint32(255))]
            ^ tables[13, data[i + 2] ^ ((crc >> np.uint32(16)) & np.uint32(255))]
            ^ tables[12, data[i + 3] ^ (crc >> np.uint32(24))]
        )
        for k in range(4, STRIDE):
            next_crc ^= tables[STRIDE - 1 - k, data[i + k]]
        crc = np.uint32(next_crc)
    for i in range(whole, end):
        crc = np.uint32(tables[0, (crc ^ data[i]) & np.uint32(255)] ^ (crc >> np.uint32(8)))
    return crc


@njit(nogil=True, cache=True)
def _segment_window_crcs(crc_bytes: UInt8s, first: Int64s, steps: Int64s, stack: int, found: UInt32s) -> None:
    for t in range(len(first)):
        end = 4 * (first[t] + steps[t] + stack)
        found[t] = _update(np.uint32(0xFFFFFFFF), crc_bytes, 4 * first[t], end) ^ np.uint32(0xFFFFFFFF)


@intrinsic
def _fold(typing_context: Any, state: Any, data: Any, at: Any) -> Any:
    """Fold the 64 bytes data[at:] into state, uint64[8]: four carry-less products of 128 bits (Gopal et al. 2009)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.IntType(64), 2)
        product = builder.module.declare_intrinsic(
            "llvm.x86.pclmulqdq", fnty=ir.FunctionType(vector, [vector, vector, ir.IntType(8)])
        )
        constants = ir.Constant(vector, FOLD_BY_512)
        pointers = [
            context.make_array(kind)(context, builder, value=value).data
            for kind, value in zip(signature.args[:2], arguments[:2], strict=True)
        ]
        pointers[1] = builder.gep(pointers[1], [arguments[2]])
        states, blocks = (builder.bitcast(pointer, vector.as_pointer()) for pointer in pointers)
        for lane in range(4):
            index = [ir.Constant(ir.IntType(64), lane)]
            place = builder.gep(states, index)
            value, block = builder.load(place, align=8), builder.load(builder.gep(blocks, index), align=1)
            low = builder.call(product, [value, constants, ir.Constant(ir.IntType(8), 0x00)])
            high = builder.call(product, [value, constants, ir.Constant(ir.IntType(8), 0x11)])
            builder.store(builder.xor(builder.xor(low, high), block), place, align=8)
        return context.get_dummy_value()

    return types.void(state, data, types.int64), generate


@njit(nogil=True, cache=True)
def _crc_by_folding(data: UInt8s, begin: int, end: int, state: UInt64s) -> np.uint32:
    if end - begin < 2 * FOLDED:
        return _update(np.uint32(0xFFFFFFFF), data, begin, end)
    folded = state.view(np.uint8)
    folded[:] = data[begin : begin + FOLDED]
    state[0] ^= np.uint64(0xFFFFFFFF)
    at = begin + FOLDED
    while at + FOLDED <= end:
        _fold(state, data, at)  # type: ignore[call-arg]  # numba gives the first itself
        at += FOLDED
    return _update(_update(np.uint32(0), folded, 0, FOLDED), data, at, end)


@njit(nogil=True, cache=True)
def _crc_by_tables(data: UInt8s, begin: int, end: int, state: UInt64s) -> np.uint32:
    return _update(np.uint32(0xFFFFFFFF), data, begin, end)


def _can_fold() -> bool:
    """Whether numba compiles for a processor that multiplies without carries as x86 does."""
    config: Any = numba.config
    chosen = config.CPU_NAME or config.CPU_FEATURES
    return not chosen and bool(llvmlite.binding.get_host_cpu_features().get("pclmul"))


_crc = _crc_by_folding if _can_fold() else _crc_by_tables


@njit(nogil=True, cache=True)
def _frame_crcs(frames: UInt8s, sizes: UInt32s, found: UInt32s) -> None:
    state = np.empty(8, np.uint64)
    begin = 0
    for i in range(len(sizes)):
        end = begin + int(sizes[i])
        found[i] = _crc(frames, begin, end, state) ^ np.uint32(0xFFFFFFFF)
        begin = end


@njit(nogil=True, cache=True)
def _window_crcs(frames: UInt8s, sizes: UInt32s, found: UInt32s) -> None:
    state = np.empty(8, np.uint64)
    crc_bytes = np.empty(4, np.uint8)
    begin = 0
    for row in range(sizes.shape[0]):
        window = np.uint32(0xFFFFFFFF)
        for position in range(sizes.shape[1]):
            size = int(sizes[row, position])
            if size:
                crc = _crc(frames, begin, begin + size, state) ^ np.uint32(0xFFFFFFFF)
                begin += size
                for k in range(4):
                    crc_bytes[k] = (crc >> np.uint32(8 * k)) & np.uint32(255)
                window = _update(window, crc_bytes, 0, 4)
        found[row] = window ^ np.uint32(0xFFFFFFFF)
