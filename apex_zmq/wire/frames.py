"""Encoding of frames: one lz4 block for an image, the raw bytes for a vector."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import lz4.block
import numpy as np
import numpy.typing as npt
from numba import njit, types

from apex_zmq.types import Buffer, FrameSpec, UInt8s, UInt32s
from apex_zmq.wire.native import exported

log = logging.getLogger(__name__)
Decoder = Callable[[UInt8s, UInt32s, UInt8s], npt.NDArray[np.bool_]]


def encode_frame(frame: npt.NDArray[Any], codec: str) -> bytes:
    """Encode one frame.

    codec: "lz4" (one block without a size) or "raw" (the bytes of the array).
    """
    if codec == "raw":
        return frame.tobytes()
    encoded: bytes = lz4.block.compress(np.ascontiguousarray(frame), store_size=False)
    return encoded


def decode_windows(frames: Buffer, sizes: UInt32s, frame: FrameSpec, out: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Decode every frame of a batch into its place in `out`.

    Args:
        frames: encoded frames, concatenated row by row; its length is the sum of `sizes`.
        sizes: [B, W] bytes of each encoded frame; 0: the place is left unchanged.
        frame: shape, dtype and codec of a frame.
        out: [B, W, *frame.shape] of frame.dtype, C-contiguous.

    Returns:
        bool [B], True for rows with a frame that does not decode to the size of a frame, or with a vector that is not
        finite; rows of the latter kind are zeroed.
    """
    source = np.frombuffer(frames, np.uint8)
    places = out.reshape(*sizes.shape, -1).view(np.uint8)
    if frame.codec == "raw":
        bad = _copy_raw(source, sizes, places)
        bad |= ~np.isfinite(out).reshape(len(out), -1).all(axis=1)
        out[bad] = 0  # a weight of 0 does not remove a NaN from a loss
        return bad
    return _lz4_decoder()(source, sizes, places)


@njit(nogil=True, cache=True)
def _copy_raw(source: UInt8s, sizes: UInt32s, places: UInt8s) -> npt.NDArray[np.bool_]:
    bad = np.zeros(sizes.shape[0], np.bool_)
    offset = 0
    for row in range(sizes.shape[0]):
        for position in range(sizes.shape[1]):
            size = sizes[row, position]
            if size == places.shape[2]:
                places[row, position] = source[offset : offset + size]
            elif size != 0:
                bad[row] = True
            offset += size
    return bad


def _decode_lz4_in_python(source: UInt8s, sizes: UInt32s, places: UInt8s) -> npt.NDArray[np.bool_]:
    bad = np.zeros(sizes.shape[0], np.bool_)
    raw_size = places.shape[2]
    offset = 0
    for row, position in np.ndindex(*sizes.shape):
        size = int(sizes[row, position])
        if size:
            try:
                raw = lz4.block.decompress(source[offset : offset + size], uncompressed_size=raw_size)
            except lz4.block.LZ4BlockError:
                raw = b""
            if len(raw) == raw_size:
                places[row, position] = np.frombuffer(raw, np.uint8)
            else:
                bad[row] = True
        offset += size
    return bad


def _compiled_decoder() -> Decoder:
    """Compile `_decode_lz4_in_python` with liblz4's LZ4_decompress_safe, which the lz4 wheel exports.

    Raises:
        OSError, AttributeError: the wheel does not export the function.
    """
    decompress = exported(
        "lz4.block._block",
        "LZ4_decompress_safe",
        types.int32(types.voidptr, types.voidptr, types.int32, types.int32),
    )

    @njit(nogil=True, cache=True)
    def decode(source: UInt8s, sizes: UInt32s, places: UInt8s) -> npt.NDArray[np.bool_]:
        bad = np.zeros(sizes.shape[0], np.bool_)
        raw_size = places.shape[2]
        offset = 0
        for row in range(sizes.shape[0]):
            for position in range(sizes.shape[1]):
                size = sizes[row, position]
                if size:
                    block, place = source[offset : offset + size], places[row, position]
                    if decompress(block.ctypes, place.ctypes, block.size, raw_size) != raw_size:
                        bad[row] = True
                offset += size
        return bad

    return decode


@functools.cache
def _lz4_decoder() -> Decoder:
    """Return the compiled decoder if its result is correct, else the Python one."""
    spec = FrameSpec((64,), "uint8", 1)
    frame = np.arange(64, dtype=np.uint8)
    encoded = encode_frame(frame, "lz4")
    try:
        decode = _compiled_decoder()
        out = np.zeros((1, 1, spec.nbytes), np.uint8)
        bad = decode(np.frombuffer(encoded, np.uint8), np.array([[len(encoded)]], np.uint32), out)
        if not bad[0] and (out[0, 0] == frame).all():
            return decode
        log.warning("liblz4's LZ4_decompress_safe returns wrong frames; decoding frames in Python, which is slower")
    except Exception as error:  # linker and compiler may raise anything
        log.warning("no compiled frame decoder (%s); decoding frames in Python, which is slower", error)
    return _decode_lz4_in_python
