"""The pace of one replay shard: how many samples it deals per transition inserted.

The rule is that of Reverb's rate limiter (Cassirer et al. 2021, arXiv
2102.04736, section 3.4): the samples dealt follow a line over the transitions
inserted, and whichever side runs too far ahead of it waits.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Governor:
    """Counts of one shard and what they allow next; the caller adds to `inserts` and `samples`.

    min_size: transitions inserted before the first batch.
    samples_per_insert: slope of the line; None: free-running apart from min_size (Horgan et al. 2018).
    tolerance: samples the account may be off the line, each way.
    batch_size: samples per batch.
    max_segment: transitions a segment holds at most.

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
                raise ValueError(f"2 x tolerance {self.tolerance:g} must reach {needed:g}, or the shard can deadlock")

    @property
    def surplus(self) -> float:
        """Samples dealt beyond the line samples_per_insert * (inserts - min_size); 0 when free-running."""
        if self.samples_per_insert is None:
            return 0.0
        return self.samples - self.samples_per_insert * (self.inserts - self.min_size)

    def resume(self, inserts: int, samples: int, newer: int) -> None:
        """Go on from counts that were noted before the `newer` last transitions were inserted.

        What was dealt meanwhile is not known: it is taken to have followed the line, as it did up to the tolerance.
        Counts that followed another line, of other settings, are brought to the tolerance of this one.
        """
        slope = self.samples_per_insert or 0.0
        self.inserts = inserts + newer
        over_line = [max(0, count - self.min_size) for count in (inserts, self.inserts)]
        self.samples = samples + round(slope * (over_line[1] - over_line[0]))
        if slope and over_line[1] > 0:
            surplus = min(max(self.surplus, -self.tolerance), self.tolerance)
            self.samples = max(0, round(slope * over_line[1] + surplus))

    def may_sample(self) -> bool:
        """Whether one more batch keeps to the tolerance."""
        if self.inserts < self.min_size:
            return False
        return self.samples_per_insert is None or self.surplus <= self._highest_to_sample

    def may_insert(self) -> bool:
        """Whether one more segment, the longest even, keeps to the tolerance."""
        if self.inserts < self.min_size or self.samples_per_insert is None:
            return True
        lowest = self.samples_per_insert * self.max_segment - self.tolerance
        # Where both thresholds are equal but for rounding, one side must still be free.
        return self.surplus >= min(lowest, self._highest_to_sample)

    @property
    def _highest_to_sample(self) -> float:
        return self.tolerance - self.batch_size
