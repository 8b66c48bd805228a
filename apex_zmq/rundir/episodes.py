"""`episodes.csv` in a run directory: one line per episode, to plot and compare runs from."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from apex_zmq.wire.messages import Episode

log = logging.getLogger(__name__)

EPISODES = "episodes.csv"
COLUMNS = ("time", "decisions", "epsilon", "stage", "return", "length")  # then entries of `Episode.info`


class EpisodeLog:
    """Appends to the file. A resumed run goes on in it, after the lines that its interrupted part wrote last.

    time: unix seconds at which the learner received the episode. decisions: of the whole run, of all lanes, then.
    entries: those of `Episode.info` that have a column; empty where an episode lacks one.
    """

    def __init__(self, directory: Path, entries: Sequence[str] = ()) -> None:
        self._entries = entries
        self._failed = False
        try:
            self._file = (directory / EPISODES).open("a", newline="")
        except OSError as error:
            self._fail(error)
            self._file = Path(os.devnull).open("w")  # noqa: SIM115 (as long as this object)
        self._rows = csv.writer(self._file)
        if self._file.tell() == 0:
            self._write([(*COLUMNS, *entries)])

    def write(self, time: float, decisions: int, episodes: Iterable[Episode]) -> None:
        """One line per episode. A file that cannot be written is logged once and costs lines, not the run."""
        self._write(
            (
                f"{time:.1f}",
                decisions,
                f"{episode.epsilon:.4g}",
                episode.stage,
                f"{episode.episode_return:.4g}",
                episode.length,
                *(f"{episode.info[entry]:.10g}" if entry in episode.info else "" for entry in self._entries),
            )
            for episode in episodes
        )

    def _write(self, rows: Iterable[Iterable[object]]) -> None:
        try:
            self._rows.writerows(rows)
            self._file.flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if not self._failed:
            log.error("%s misses episodes, training goes on: %s", EPISODES, error)
        self._failed = True

    def close(self) -> None:
        """Close the file."""
        try:
            self._file.close()
        except OSError as error:  # what a full disk left in the buffer
            log.error("%s misses episodes: %s", EPISODES, error)
