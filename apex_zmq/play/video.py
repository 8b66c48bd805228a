"""Write pictures to a file: .mp4 (H.264, through imageio-ffmpeg) or .gif (Pillow)."""

from __future__ import annotations

import importlib.util
import io
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from apex_zmq.errors import UserError
from apex_zmq.types import UInt8s

DIGEST_PICTURES = 200
DIGEST_SIZE = 240, 240


class VideoError(UserError):
    """A video file that cannot be written."""


def check(path: Path) -> None:
    """Check, before anything is played, that a video file can be written.

    Raises:
        VideoError: the suffix is neither .mp4 nor .gif, the directory does not exist, or imageio-ffmpeg is missing.
    """
    if path.suffix not in (".mp4", ".gif"):
        raise VideoError(f"video {path}: the name must end in .mp4 or .gif")
    if not path.parent.is_dir():
        raise VideoError(f"video {path}: directory {path.parent} does not exist; create it first")
    if path.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise VideoError(f"video {path}: .mp4 needs imageio-ffmpeg; pip install imageio-ffmpeg, or write a .gif")


def save_gif(target: Path | IO[bytes], images: Sequence[Image.Image], pictures_per_s: float) -> None:
    """Write an endless GIF of one image or more, with delays rounded to its unit of 10 ms."""
    first, *rest = images
    hundredths = max(2, round(100 / pictures_per_s))  # unit of a GIF's delay; browsers slow down delays below 2
    first.save(target, "GIF", save_all=True, append_images=rest, duration=10 * hundredths, loop=0)


class Digest:
    """An episode as a GIF small enough for TensorBoard: every second picture or fewer, at most 200, in real time.

    Takes RGB pictures uint8 [H, W, 3], all of one size, and shrinks them to at most 240x240.

    pictures_per_s: rate at which the pictures are added.
    """

    def __init__(self, pictures_per_s: float) -> None:
        self._rate = pictures_per_s
        self._stride = 2  # pictures between two that are kept
        self._count = 0
        self._images: list[Image.Image] = []

    def show(self, picture: UInt8s) -> None:
        """Add a picture."""
        if len(self._images) == DIGEST_PICTURES:
            del self._images[1::2]
            self._stride *= 2
        if self._count % self._stride == 0:
            image = Image.fromarray(picture)
            image.thumbnail(DIGEST_SIZE, Image.Resampling.BOX)
            self._images.append(image)
        self._count += 1

    def gif(self) -> bytes:
        """Return the GIF's bytes; at least one picture must have been added."""
        file = io.BytesIO()
        save_gif(file, [image.quantize() for image in self._images], self._rate / self._stride)
        return file.getvalue()


class Video:
    """Writes RGB pictures uint8 [H, W, 3], all of one size; the file is complete after `close`.

    A GIF is kept in memory until then, one byte per pixel.

    pictures_per_s: rate at which the video plays.

    Raises:
        VideoError: as `check`; from any method: the file cannot be written.
    """

    def __init__(self, path: Path, pictures_per_s: float) -> None:
        check(path)
        self._path = path
        self._rate = pictures_per_s
        self._encoder: subprocess.Popen[bytes] | None = None
        self._images: list[Image.Image] = []

    def show(self, picture: UInt8s) -> None:
        """Add a picture."""
        if self._path.suffix == ".gif":
            self._images.append(Image.fromarray(picture).quantize())
            return
        rows, columns, _ = picture.shape
        # H.264 requires even sizes.
        even = np.pad(picture, ((0, rows % 2), (0, columns % 2), (0, 0)), mode="edge")
        if self._encoder is None:
            self._encoder = _encoder(self._path, even.shape, self._rate)
        assert self._encoder.stdin is not None
        try:
            self._encoder.stdin.write(even.tobytes())
        except BrokenPipeError:
            self.close()

    def close(self) -> None:
        """Finish the file."""
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            _, complaint = encoder.communicate()
            if encoder.returncode:
                raise self._error((complaint.decode(errors="replace").splitlines() or ["ffmpeg failed"])[-1])
        if self._images:
            try:
                save_gif(self._path, self._images, self._rate)
            except OSError as error:
                raise self._error(error.strerror or str(error)) from error

    def _error(self, reason: str) -> VideoError:
        return VideoError(f"video {self._path} cannot be written: {reason}; choose another file")


def _encoder(path: Path, shape: Sequence[int], pictures_per_s: float) -> subprocess.Popen[bytes]:
    """Start imageio-ffmpeg's ffmpeg on raw pictures, in its own session: Ctrl-C must not cut the file short."""
    import imageio_ffmpeg

    rows, columns, _ = shape
    pictures = [
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{columns}x{rows}",
        "-r",
        f"{pictures_per_s:g}",
        "-i",
        "-",
    ]
    encoded = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-y", str(path)]
    return subprocess.Popen(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *pictures, *encoded],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
