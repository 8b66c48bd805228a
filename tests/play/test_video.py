from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apex_zmq.play.video import Digest, Video, VideoError, check
from apex_zmq.types import UInt8s

from ..checkpoints import read_video

# Five plain pictures of 33 x 40 pixels: compression hardly changes them.
PICTURES = [np.full((33, 40, 3), (40 * number, 100, 200), np.uint8) for number in range(5)]


def write(path: Path, pictures_per_s: float, pictures: list[UInt8s]) -> None:
    video = Video(path, pictures_per_s)
    for picture in pictures:
        video.show(picture)
    video.close()


def test_a_gif_holds_every_picture(tmp_path: Path) -> None:
    write(tmp_path / "a.gif", 15.0, PICTURES)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 5  # type: ignore[attr-defined]
        for number, picture in enumerate(PICTURES):
            image.seek(number)
            assert image.info["duration"] == 70
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), picture)


def test_a_fast_gif_is_not_slowed_down(tmp_path: Path) -> None:
    write(tmp_path / "a.gif", 200.0, PICTURES)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["duration"] == 20


def test_an_mp4_holds_every_picture(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", 15.0, PICTURES)
    shown, rate = read_video(tmp_path / "a.mp4")
    assert rate == 15.0
    assert shown.shape == (5, 34, 40, 3)  # even
    for picture, frame in zip(PICTURES, shown, strict=True):
        assert np.abs(frame.mean(axis=(0, 1)) - picture[0, 0]).max() < 12


def test_no_file_is_written_without_pictures(tmp_path: Path) -> None:
    for name in ("a.gif", "a.mp4"):
        write(tmp_path / name, 15.0, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [("a.avi", "must end in .mp4 or .gif"), ("a", "must end"), ("no/a.gif", "directory .*no does not exist;")],
)
def test_files_that_cannot_be_written_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(VideoError, match=reason):
        check(tmp_path / name)


def test_an_mp4_needs_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VideoError, match=r"pip install imageio-ffmpeg, or write a \.gif"):
        check(tmp_path / "a.mp4")
    check(tmp_path / "a.gif")


@pytest.mark.parametrize(("count", "kept"), [(1, [0]), (5, [0, 2, 4]), (401, range(0, 401, 4))])
def test_digest_keeps_few_small_pictures_at_original_speed(count: int, kept: Sequence[int]) -> None:
    digest = Digest(50.0)
    for number in range(count):
        digest.show(np.full((240, 480, 3), (number % 256, number // 256 * 100, 200), np.uint8))
    with Image.open(io.BytesIO(digest.gif())) as image:
        assert image.size == (240, 120)
        assert image.n_frames == len(kept)  # type: ignore[attr-defined]
        for index, number in enumerate(kept):
            image.seek(index)
            assert image.convert("RGB").getpixel((239, 119)) == (number % 256, number // 256 * 100, 200)
            if len(kept) > 1:
                assert image.info["duration"] == 20 * (kept[1] - kept[0])


@pytest.mark.parametrize("name", ["a.gif", "a.mp4"])
def test_unwritable_file_gives_a_one_line_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(VideoError, match=f"{name} cannot be written: .*; choose another file") as refusal:
        write(tmp_path / name, 15.0, PICTURES * 100)
    assert "\n" not in str(refusal.value)
