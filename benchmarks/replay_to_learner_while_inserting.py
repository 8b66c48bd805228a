"""Measure batches of 512 per second to the learner during 12,500 inserts/s; peer: the paper's 19 batches/s.

Horgan et al. 2018 (arXiv 1803.00933), sections 4.1 and appendix F: 360 actors made about 50K frames/s, with 4
frames per decision, hence 12,500 transitions/s; the learner took about 19 batches of 512 per second.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks import mario_frames, synthetic
from benchmarks.replay_to_learner import SECONDS, STORED, WARM_UP_S
from benchmarks.rows import Row, main, versus

ROUNDS = 3
INSERTS_PER_S = 12_500
PAPER_BATCHES_PER_S = 19.0


def measure() -> list[Row]:
    rates = [rates_of_one_round() for _ in range(ROUNDS)]
    inserted = statistics.median(inserts for _, inserts in rates)
    return [
        versus(
            "replay_to_learner_while_inserting",
            f"batches of 512 to the learner while {inserted:,.0f} transitions/s go in; peer: the paper's learner",
            [batches for batches, _ in rates],
            [PAPER_BATCHES_PER_S],
            2.5,
            "batches/s",
        )
    ]


def rates_of_one_round() -> tuple[float, float]:
    """One round's rates: (batches/s, inserts/s)."""
    with synthetic.replay({"replay.min_size": STORED}) as running:
        sent = synthetic.messages(mario_frames.segments(mario_frames.play()), running.config)
        synthetic.fill(running, sent, STORED)
        addresses = running.config.addresses.experience
        command = [sys.executable, "-m", "benchmarks.senders", "4", str(INSERTS_PER_S), *addresses]
        senders = subprocess.Popen(command)
        learner = synthetic.SyntheticLearner(running.config)
        running.await_total("inserts", STORED + INSERTS_PER_S)  # the senders have begun
        learner.batches_per_s(WARM_UP_S, 0.0)
        begin, status = running.total("inserts"), next(iter(running.status.values()))
        batches = learner.batches_per_s(0.0, SECONDS)
        inserted = running.total("inserts") - begin
        elapsed_s = next(iter(running.status.values())).time - status.time
        learner.close()
        senders.terminate()
        senders.wait()
    return batches, inserted / elapsed_s


if __name__ == "__main__":
    main(measure)
