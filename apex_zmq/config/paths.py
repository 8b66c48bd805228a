"""Paths that users give, as options and as settings."""

from __future__ import annotations

import os
from pathlib import Path

NAME_BYTES = 255  # of one part of a path, in the file systems of Linux
SETTINGS = frozenset({"run.dir", "replay.snapshot_dir", "addresses.keys"})


def expanded(text: str) -> Path:
    """Return a path with a leading ~ expanded.

    Raises:
        ValueError: no path can be made of the text, in words for the user.
    """
    if not text:
        raise ValueError("an empty path; name a file or directory, such as ./here")
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"path {text!a} is not UTF-8; choose another name") from None
    if b"\0" in encoded:
        raise ValueError(f"path {text!a} has a null byte; choose another name")
    longest = max(encoded.split(b"/"), key=len)
    if len(longest) > NAME_BYTES:
        raise ValueError(f"a name of {len(longest)} bytes in a path; at most {NAME_BYTES} are possible")
    # Path.expanduser would expand ./~ too.
    whole = os.path.expanduser(text)
    if whole.startswith("~"):
        raise ValueError(f"path {text}: no such user; write the path without ~, or as ./{text}")
    return Path(whole)
