"""The archive of restarts as histograms over progress: sums over actors, and curves for TensorBoard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from apex_zmq.wire.messages import MAX_COUNT, MAX_STAGES, StageArchive


class Buckets(NamedTuple):
    """A histogram: counts of buckets of equal width, the first of which begins at 0."""

    width: float
    counts: Sequence[int]


def pooled(counts: Sequence[int], factor: float) -> list[int]:
    """Pool buckets into wider ones; a bucket counts where it begins.

    counts: at least one. factor: new width divided by the old one, >= 1.
    """
    wider = [0] * (int((len(counts) - 1) // factor) + 1)
    for bucket, count in enumerate(counts):
        wider[int(bucket // factor)] += count
    return wider


def total(archives: Iterable[StageArchive]) -> tuple[StageArchive, ...]:
    """Sum histograms by stage, in the order of the stages' labels; at most `MAX_STAGES` of them."""
    by_stage = defaultdict(list)
    for each in archives:
        by_stage[each.stage].append(each)
    return tuple(_sum(stage, by_stage[stage]) for stage in sorted(by_stage)[:MAX_STAGES])


def _sum(stage: str, parts: Sequence[StageArchive]) -> StageArchive:
    """Pool all buckets to the largest width, and add them."""
    width = max(part.width for part in parts)
    frontiers = [pooled(part.frontier, width / part.width) for part in parts]
    ends = [pooled(part.ends, width / part.width) for part in parts]
    length = max(map(len, frontiers))
    return StageArchive(stage, width, _added(frontiers, length), _added(ends, length))


def _added(histograms: Sequence[Sequence[int]], length: int) -> tuple[int, ...]:
    padded = ((*counts, *[0] * (length - len(counts))) for counts in histograms)
    return tuple(min(sum(column), MAX_COUNT) for column in zip(*padded, strict=True))


def curves(archives: Iterable[StageArchive]) -> Iterator[tuple[str, Buckets]]:
    """Histograms by TensorBoard tag, without empty ones."""
    for each in archives:
        for name, counts in (("frontier", each.frontier), ("ends", each.ends)):
            if any(counts):
                yield "/".join(filter(None, ("restarts", name, each.stage))), Buckets(each.width, counts)
