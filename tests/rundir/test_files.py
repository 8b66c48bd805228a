"""Files that are replaced whole or not at all, and locks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apex_zmq.rundir.files import FileLock, replacing


def write(path: Path, text: str, previous: Path | None = None, fail: bool = False) -> None:
    with replacing(path, previous) as temporary:
        temporary.write_text(text)
        if fail:
            raise KeyError


def test_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, "one")
    with replacing(path) as temporary:
        temporary.write_text("two")
        assert path.read_text() == "one"
    assert path.read_text() == "two"
    assert os.listdir(tmp_path) == ["a"]


def test_a_block_that_raises_changes_nothing(tmp_path: Path) -> None:
    path, previous = tmp_path / "a", tmp_path / "b"
    write(path, "one")
    with pytest.raises(KeyError):
        write(path, "half", previous, fail=True)
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["a"]


def test_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a", "one")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_text() == "one"


def test_previous_file_is_moved_to_the_given_path(tmp_path: Path) -> None:
    path, previous = tmp_path / "a", tmp_path / "b"
    for text in ("one", "two", "three"):
        write(path, text, previous)
    assert (path.read_text(), previous.read_text()) == ("three", "two")


def test_stale_hard_link_is_not_written_through(tmp_path: Path) -> None:
    path, precious = tmp_path / "a", tmp_path / "b"
    precious.write_text("precious")
    os.link(precious, tmp_path / ".a.tmp")
    write(path, "one")
    assert precious.read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_lock_is_held_by_one_and_released_once(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = FileLock(path)
    with pytest.raises(BlockingIOError):
        FileLock(path)
    lock.release()
    again = FileLock(path)
    lock.release()  # must not close a descriptor that has the number of its own by now
    with pytest.raises(BlockingIOError):
        FileLock(path)
    again.release()


def test_a_lock_refused_leaks_no_descriptor(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(BlockingIOError):
        FileLock(tmp_path / "lock")
    assert os.listdir("/proc/self/fd") == before
    lock.release()
