"""Exchanges between the ranks of one learner: the run at the start, batch metadata before each step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from apex_zmq.agent.importance import Draw
from apex_zmq.agent.ranks import Ranks
from apex_zmq.errors import ConfigError
from apex_zmq.roles.learner.feeder import DecodedBatch
from apex_zmq.types import Float64s

DRAW = [field.name for field in dataclasses.fields(Draw)]
ROW = np.dtype(
    [
        ("leave", "?"),  # stop requested, or a budget is spent
        ("ready", "?"),  # has a batch, described by the columns of DRAW
        ("shard", "i8"),
        ("shard_incarnation", "i8"),
        ("mass", "f8"),
        ("num_transitions", "i8"),
        ("least", "f8"),
        ("now", "f8"),  # monotonic seconds
        ("waited_s", "f8"),  # for a batch, since the previous exchange
        ("corrupted", "i8"),  # number of windows so far
    ]
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """Messages of all ranks before a step.

    leave: whether any rank leaves, upon which all leave.
    draws: the batch of each rank, in rank order; empty unless every rank has one.
    now: rank 0's clock, monotonic seconds.
    waited_s: [R] seconds that each rank waited for its batch since the previous exchange.
    corrupted: number of windows of all ranks so far with a wrong checksum.
    """

    leave: bool
    draws: tuple[Draw, ...]
    now: float
    waited_s: Float64s
    corrupted: int


def exchange(
    ranks: Ranks, *, leave: bool, decoded: DecodedBatch | None, now: float, waited_s: float, corrupted: int
) -> Exchange:
    """Send this rank's state to the other ranks and gather theirs; arguments as the columns of `ROW`.

    Raises:
        RankLostError: another rank has ended.
    """
    mine = np.zeros((), ROW)
    mine["leave"], mine["now"], mine["waited_s"], mine["corrupted"] = leave, now, waited_s, corrupted
    if decoded is not None:
        batch, sample = decoded.batch, decoded.batch.sample
        mine["ready"] = True
        mine["shard"], mine["shard_incarnation"] = batch.shard, batch.shard_incarnation
        mine["mass"], mine["num_transitions"] = sample.mass, sample.num_transitions
        mine["least"] = sample.priority.min()
    rows = ranks.gather(mine)
    ready = rows["ready"].all()
    return Exchange(
        leave=bool(rows["leave"].any()),
        draws=tuple(Draw(*row) for row in rows[DRAW].tolist()) if ready else (),
        now=rows[0]["now"].item(),
        waited_s=rows["waited_s"].copy(),
        corrupted=rows["corrupted"].sum().item(),
    )


def agree(ranks: Ranks, run_id: str, incarnation: int, experience: str, network: str, updates: int) -> tuple[str, int]:
    """Return rank 0's run and incarnation for all ranks; check that the other arguments are the same on all.

    Args:
        ranks: each must call this function.
        run_id: of the run.
        incarnation: of this process of the learner.
        experience: signature of the experience.
        network: signature of the network.
        updates: gradient steps taken so far.

    Raises:
        ConfigError: rank 0 has different settings, or another number of updates.
        RankLostError: another rank has ended.
    """
    here = [experience, network, updates]
    run_id, incarnation, *there = ranks.share([run_id, incarnation, *here])
    if here != there:
        raise ConfigError(
            f"rank {ranks.rank} has signatures and updates {here}, rank 0 {there}; give all ranks the same config, "
            "and a run directory on a shared file system"
        )
    return run_id, incarnation
