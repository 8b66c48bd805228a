"""Rate limiter of one replay shard: samples per inserted transition.

The rule is that of Reverb's rate limiter (Cassirer et al. 2021, arXiv 2102.04736, section 3.4): the number of samples
follows a line over the number of inserted transitions, and the side that runs too far ahead of the line waits.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Governor:
    """Counts of one shard, and whether they allow the next batch or segment; the caller adds to the counts.

    min_size: transitions inserted before the first batch.
    samples_per_insert: slope of the line; None: no limit but min_size (Horgan et al. 2018).
    tolerance: maximum distance from the line in either direction, in samples.
    batch_size: samples per batch.
    max_segment: maximum length of a segment, in transitions.
    inserts, samples: transitions inserted and samples dealt so far.

    The surplus stays in [-tolerance, tolerance], except that the segment that
    reaches min_size may leave it at -samples_per_insert * (max_segment - 1).

    Raises:
        ValueError: the tolerance is so small that both sides could wait for each other.
    """

    min_size: int
    samples_per_insert: float | None
    tolerance: float
    batch_size: int
    max_segment: int
    inserts: int = 0
    samples: int = 0

    def __post_init__(self) -> None:
        if self.samples_per_insert is not None:
            needed = self.batch_size + self.samples_per_insert * self.max_segment
            if 2 * self.tolerance < needed:
                raise ValueError(f"2 x tolerance {self.tolerance:g} must reach {needed:g}, or both sides may wait")

    @property
    def surplus(self) -> float:
        """Samples dealt minus samples_per_insert * (inserts - min_size); 0 without samples_per_insert."""
        if self.samples_per_insert is None:
            return 0.0
        return self.samples - self.samples_per_insert * (self.inserts - self.min_size)

    def resume(self, inserts: int, samples: int, newer: int) -> None:
        """Restore counts from a snapshot.

        The samples dealt since the snapshot are not known; they are assumed to have followed the line. A surplus beyond
        the tolerance, which comes from other settings, is clipped to it.

        inserts, samples: counts of the snapshot.
        newer: transitions inserted since the snapshot.
        """
        slope = self.samples_per_insert or 0.0
        self.inserts = inserts + newer
        over_line = [max(0, count - self.min_size) for count in (inserts, self.inserts)]
        self.samples = samples + round(slope * (over_line[1] - over_line[0]))
        if slope and over_line[1] > 0:
            surplus = min(max(self.surplus, -self.tolerance), self.tolerance)
            self.samples = max(0, round(slope * over_line[1] + surplus))

    def may_sample(self) -> bool:
        """Whether one more batch stays within the tolerance."""
        if self.inserts < self.min_size:
            return False
        return self.samples_per_insert is None or self.surplus <= self._highest_to_sample

    def may_insert(self) -> bool:
        """Whether one more segment of the maximum length stays within the tolerance."""
        if self.inserts < self.min_size or self.samples_per_insert is None:
            return True
        lowest = self.samples_per_insert * self.max_segment - self.tolerance
        # Where both thresholds are equal but for rounding, one side must still be allowed.
        return self.surplus >= min(lowest, self._highest_to_sample)

    @property
    def _highest_to_sample(self) -> float:
        return self.tolerance - self.batch_size
