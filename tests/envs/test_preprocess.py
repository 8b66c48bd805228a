from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_zmq.envs.preprocess import image_frame, rgb565_luma, screen_frame
from apex_zmq.types import Int64s, UInt8s, UInt16s


def rgb565(screen: UInt16s) -> UInt8s:
    value = screen.astype(np.int64)
    five = np.array([v << 3 | v >> 2 for v in range(32)])
    six = np.array([v << 2 | v >> 4 for v in range(64)])
    channels = [five[value >> 11], six[value >> 5 & 63], five[value & 31]]
    rgb: UInt8s = np.stack(channels, axis=-1).astype(np.uint8)
    return rgb


def reference_luma(rgb: UInt8s) -> Int64s:
    weighted: Int64s = rgb.astype(np.int64) @ np.array([299, 587, 114])
    return (weighted + 500) // 1000


def reference_shrink(gray: Int64s, height: int, width: int) -> UInt8s:
    """Every source pixel split into height x width equal parts, then plain block means."""
    rows, columns = gray.shape
    by_row = np.repeat(gray, height, axis=0).reshape(height, rows, columns).sum(axis=1)
    total = np.repeat(by_row, width, axis=1).reshape(height, width, columns).sum(axis=2)
    mean: UInt8s = ((2 * total + rows * columns) // (2 * rows * columns)).astype(np.uint8)
    return mean


@pytest.mark.parametrize("hud", ["crop", "mask", "keep"])
@pytest.mark.parametrize(("height", "width"), [(48, 60), (84, 84), (56, 60), (240, 256)])
def test_screen_frames_equal_the_reference(hud: Literal["crop", "mask", "keep"], height: int, width: int) -> None:
    screen = np.random.default_rng(height).integers(0, 1 << 16, (224, 240), np.uint16)
    gray = reference_luma(rgb565(screen))
    if hud == "crop":
        gray = gray[32:]
    elif hud == "mask":
        gray[:32] = 0
    frame = screen_frame(screen, hud, height, width)
    assert (frame.shape, frame.dtype.name) == ((height, width), "uint8")
    np.testing.assert_array_equal(frame, reference_shrink(gray, height, width))


def test_two_screens_pool_by_luma() -> None:
    first, second = np.random.default_rng(2).integers(0, 1 << 16, (2, 224, 240), np.uint16)
    gray = np.maximum(reference_luma(rgb565(first)), reference_luma(rgb565(second)))
    np.testing.assert_array_equal(screen_frame(first, "crop", 84, 84, second), reference_shrink(gray[32:], 84, 84))
    gray[:32] = 0
    np.testing.assert_array_equal(screen_frame(first, "mask", 84, 84, second), reference_shrink(gray, 84, 84))


def test_integer_factors_give_block_means() -> None:
    screen = np.random.default_rng(1).integers(0, 1 << 16, (224, 240), np.uint16)
    means = reference_luma(rgb565(screen))[32:].reshape(48, 4, 60, 4).mean(axis=(1, 3))
    np.testing.assert_array_equal(screen_frame(screen, "crop", 48, 60), np.floor(means + 0.5))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_image_frames_equal_the_reference(rows: int, columns: int, height: int, width: int, seed: int) -> None:
    rgb = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), np.uint8)
    gray = rgb[..., 1]  # a strided view
    expected = reference_shrink(gray.astype(np.int64), height, width)
    np.testing.assert_array_equal(image_frame(gray, height, width), expected)
    np.testing.assert_array_equal(image_frame(gray[..., None], height, width), expected)
    np.testing.assert_array_equal(image_frame(rgb, height, width), reference_shrink(reference_luma(rgb), height, width))


def test_luma_matches_bt_601() -> None:
    table = rgb565_luma()
    red, green, blue = 31 << 11, 63 << 5, 31
    assert [int(table[v]) for v in (0, red, green, blue, red + green + blue)] == [0, 76, 150, 29, 255]
    np.testing.assert_array_equal(table, reference_luma(rgb565(np.arange(1 << 16).astype(np.uint16))))
