"""Tables of the training runs as CSV files; a name that ends in .gz is compressed, the same rows to the same bytes."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LEVEL = 9  # of gzip


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write these columns of the rows to `path`, under a header line.

    A compressed file holds neither a modification time nor a name, so that writing it again changes no byte.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(_compress(data) if path.suffix == ".gz" else data)


def _compress(data: bytes) -> bytes:
    # gzip.compress() names the operating system in the header, in some versions of Python only.
    compressed = io.BytesIO()
    with gzip.GzipFile("", "wb", LEVEL, compressed, mtime=0) as file:
        file.write(data)
    return compressed.getvalue()


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file by column name, all cells as text."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))
