"""`episodes.csv` in a run directory: one row per episode, for plots and comparisons."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from apex_zmq.wire.messages import Episode

log = logging.getLogger(__name__)

EPISODES = "episodes.csv"
COLUMNS = ("time", "decisions", "epsilon", "stage", "return", "length")  # followed by entries of `Episode.info`


class EpisodeLog:
    """Appends rows to the file, also when a run resumes.

    time: Unix time at which the learner received the episode, in seconds.
    decisions: decisions of the whole run, over all lanes, at that time.
    entries: entries of `Episode.info` that get a column each, empty for episodes without the entry.
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
        """Append one row per episode. A write error is logged once; the rows are dropped."""
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
            log.error("episodes missing from %s, training continues: %s", EPISODES, error)
        self._failed = True

    def close(self) -> None:
        """Close the file."""
        try:
            self._file.close()
        except OSError as error:  # buffered rows on a full disk
            log.error("episodes missing from %s: %s", EPISODES, error)
