"""What ranks tell each other, as one rank hears itself; several are run in `tests/system/test_ranks.py`."""

from __future__ import annotations

import dataclasses

import numpy as np

from apex_zmq.agent.importance import Draw
from apex_zmq.agent.ranks import ALONE
from apex_zmq.roles.learner.consensus import agree, exchange
from apex_zmq.roles.learner.feeder import DecodedBatch

from .dealt import dealt

ROWS = 3


def test_exchange_shares_the_inputs_of_importance_weights() -> None:
    batch = dealt(ROWS, incarnation=1)
    sample = dataclasses.replace(batch.sample, priority=np.array([3.0, 0.5, 2.0]), mass=12.5, num_transitions=40)
    batch = dataclasses.replace(batch, shard=2, shard_incarnation=(1 << 63) - 1, sample=sample)
    decoded = DecodedBatch(batch, np.zeros(0), np.zeros(ROWS, np.bool_))
    heard = exchange(ALONE, leave=False, decoded=decoded, now=5.0, waited_s=0.25, corrupted=3)
    assert heard.draws == (Draw(2, (1 << 63) - 1, 12.5, 40, 0.5),)
    assert (heard.leave, heard.now, heard.waited_s.tolist(), heard.corrupted) == (False, 5.0, [0.25], 3)


def test_exchange_without_a_batch_has_no_draws() -> None:
    heard = exchange(ALONE, leave=True, decoded=None, now=5.0, waited_s=0.0, corrupted=0)
    assert heard.leave
    assert heard.draws == ()


def test_agree_on_a_single_rank_returns_its_values() -> None:
    assert agree(ALONE, "run", 7, "experience", "network", 100) == ("run", 7)
