"""Measure sampling 512 of 2^21 priorities with weights and updating them; peer: cpprb in the same process."""

from __future__ import annotations

from benchmarks.rows import Row, main, peer, versus


def measure() -> list[Row]:
    measured = peer("cpprb_priorities")
    if measured is None:
        raise SystemExit("cpprb is missing: run `make bench-peers`")
    what = "sample 512 of 2^21 with weights, then update 512; peer: cpprb"
    return [versus("priorities", what, measured["ours_ms"], measured["cpprb_ms"], 4.0, "ms", less_is_better=True)]


if __name__ == "__main__":
    main(measure)
