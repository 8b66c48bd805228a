from __future__ import annotations

import lz4.block
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_zmq.types import FrameSpec, UInt8s, UInt32s
from apex_zmq.wire import frames

IMAGE = FrameSpec((6, 8), "uint8", 2)
VECTOR = FrameSpec((3,), "float32", 2)
SENTINEL = 171


def encoded_batch(images: UInt8s, present: npt.NDArray[np.bool_]) -> tuple[list[bytes], UInt32s]:
    """The encoded frames of [B, W] places, and their sizes."""
    blocks = [
        frames.encode_frame(images[place], "lz4") if present[place] else b"" for place in np.ndindex(*present.shape)
    ]
    return blocks, np.array([len(block) for block in blocks], np.uint32).reshape(present.shape)


def random_images(seed: int, rows: int, window: int) -> tuple[UInt8s, npt.NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, rng.integers(1, 256, endpoint=True), (rows, window, *IMAGE.shape)).astype(np.uint8)
    return images, rng.random((rows, window)) < 0.8


def test_the_compiled_decoder_is_in_use() -> None:
    assert frames._lz4_decoder() is not frames._decode_lz4_in_python


def test_frames_are_encoded_as_lz4_blocks_or_raw() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(6, 8)
    block = frames.encode_frame(image, "lz4")
    assert lz4.block.decompress(block, uncompressed_size=48) == image.tobytes()
    # A frame may be a view, such as a transposed screen.
    assert lz4.block.decompress(frames.encode_frame(image.T, "lz4"), uncompressed_size=48) == image.T.tobytes()
    vector = np.array([1, -2, 0.5], np.float32)
    assert frames.encode_frame(vector, "raw") == vector.astype("<f4").tobytes()


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 5))
@settings(deadline=None, max_examples=50)
def test_images_are_decoded_and_padding_is_unchanged(seed: int, rows: int, window: int) -> None:
    images, present = random_images(seed, rows, window)
    blocks, sizes = encoded_batch(images, present)
    out = np.full(images.shape, SENTINEL, np.uint8)
    bad = frames.decode_windows(b"".join(blocks), sizes, IMAGE, out)
    assert not bad.any()
    np.testing.assert_array_equal(out, np.where(present[..., None, None], images, SENTINEL))


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 5), st.data())
@settings(deadline=None, max_examples=150)
def test_compiled_decoder_equals_the_python_one_on_damaged_blocks(
    seed: int, rows: int, window: int, data: st.DataObject
) -> None:
    images, present = random_images(seed, rows, window)
    blocks, _ = encoded_batch(images, present)
    for _ in range(data.draw(st.integers(0, 4))):
        victim = data.draw(st.integers(0, len(blocks) - 1))
        damaged = bytearray(blocks[victim])
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(damaged)))
        blocks[victim] = bytes(damaged[:cut]) + data.draw(st.binary(max_size=3))
    sizes = np.array([len(block) for block in blocks], np.uint32).reshape(rows, window)
    source = np.frombuffer(b"".join(blocks), np.uint8)
    # One row of sentinels on each side: nothing may be written beyond the batch.
    guarded = np.full((rows + 2, window, IMAGE.nbytes), SENTINEL, np.uint8)
    expected = np.full((rows, window, IMAGE.nbytes), SENTINEL, np.uint8)
    bad = frames._lz4_decoder()(source, sizes, guarded[1:-1])
    expected_bad = frames._decode_lz4_in_python(source, sizes, expected)
    np.testing.assert_array_equal(bad, expected_bad)
    np.testing.assert_array_equal(guarded[1:-1][~bad], expected[~bad])
    assert (guarded[[0, -1]] == SENTINEL).all()


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"\xff\xff\xff", id="garbage"),
        pytest.param(lz4.block.compress(bytes(47), store_size=False), id="one byte short"),
        pytest.param(lz4.block.compress(bytes(49), store_size=False), id="one byte long"),
        pytest.param(lz4.block.compress(bytes(1), store_size=False), id="one byte"),
        pytest.param(lz4.block.compress(b"", store_size=False), id="nothing"),
        pytest.param(lz4.block.compress(bytes(1 << 20), store_size=False), id="bomb"),
        pytest.param(lz4.block.compress(bytes(48), store_size=False)[:-1], id="truncated"),
    ],
)
def test_block_that_is_not_one_frame_flags_only_its_row(block: bytes) -> None:
    good = frames.encode_frame(np.full(IMAGE.shape, 5, np.uint8), "lz4")
    blocks = [good, good, good, block, good, good]
    sizes = np.array([len(each) for each in blocks], np.uint32).reshape(3, 2)
    for decode in (frames._lz4_decoder(), frames._decode_lz4_in_python):
        out = np.zeros((3, 2, IMAGE.nbytes), np.uint8)
        bad = decode(np.frombuffer(b"".join(blocks), np.uint8), sizes, out)
        assert bad.tolist() == [False, True, False]
        assert (out[[0, 2]] == 5).all()


def test_vectors_are_copied_and_padding_is_unchanged() -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    sizes = np.array([[12, 12], [12, 0]], np.uint32)
    out = np.full((2, 2, 3), -1, np.float32)
    bad = frames.decode_windows(vectors.tobytes()[:36], sizes, VECTOR, out)
    assert bad.tolist() == [False, False]
    np.testing.assert_array_equal(out[0], vectors[0])
    np.testing.assert_array_equal(out[1], [[6, 7, 8], [-1, -1, -1]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_flag_and_zero_their_row(value: float) -> None:
    vectors = np.ones((3, 2, 3), np.float32)
    vectors[1, 1, 2] = value
    out = np.zeros((3, 2, 3), np.float32)
    bad = frames.decode_windows(vectors.tobytes(), np.full((3, 2), 12, np.uint32), VECTOR, out)
    assert bad.tolist() == [False, True, False]
    np.testing.assert_array_equal(out[:, 0, 0], [1, 0, 1])
    assert np.isfinite(out).all()


def test_vector_of_another_size_flags_only_its_row() -> None:
    sizes = np.array([[12, 8], [12, 12]], np.uint32)
    values = np.arange(11, dtype=np.float32)
    out = np.zeros((2, 2, 3), np.float32)
    bad = frames.decode_windows(values.tobytes(), sizes, VECTOR, out)
    assert bad.tolist() == [True, False]
    np.testing.assert_array_equal(out[1].ravel(), values[5:])
