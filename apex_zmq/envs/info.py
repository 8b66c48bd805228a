"""Table of the entries of `Step.info` that environments report, and of the figures computed from them.

`Step.info` maps names to numbers and is sent to the learner unchanged (`Episode.info` of docs/PROTOCOL.md). Statistics,
TensorBoard, the progress line, evaluations and `episodes.csv` use only the names of this table. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from apex_zmq.config.settings import Env
from apex_zmq.envs.games import WORLDS


class Statistic(NamedTuple):
    """A figure computed from one entry of `info` over several episodes. An empty name: not computed for that use."""

    entry: str
    aggregate: Literal["mean", "max", "sum"]
    help: str
    window: str = ""  # name, below rollout/, of the figure over the last episodes
    total: str = ""  # name, below rollout/ and among a checkpoint's counters, over the whole run; empty for means
    figure: str = ""  # name in an evaluation
    curve: str = ""  # its curve on TensorBoard, below eval/
    is_rate: bool = False  # a share of episodes: evaluations add a 95% interval, statistics its buckets of epsilon
    chart: tuple[str, str] = ("", "")  # category and title in TensorBoard's Custom Scalars
    label: str = ""  # label of the total on the progress line, of a rate in apex-top

    def of(self, infos: Iterable[Mapping[str, float]]) -> float | None:
        """Compute the figure from the `info` of each episode; None: no episode has the entry."""
        values = [info[self.entry] for info in infos if self.entry in info]
        if not values:
            return None
        if self.aggregate == "mean":
            return sum(values) / len(values)
        return max(values) if self.aggregate == "max" else sum(values)


class Ends(NamedTuple):
    """Histograms, one per stage, of an entry over the last episodes that did not succeed."""

    entry: str
    success: str  # entry, nonzero if an episode succeeded
    tag: str  # followed by the stage


# max_x: largest x in the stage where the episode ended, in its last life, pixels. cleared: 1 where that stage, of the
# whole game its last one, was cleared. stages_cleared: stages cleared in the episode. warped: 1 where it ended in a
# warp zone. loops: times a maze took Mario back. stalled: 1 where it ended without new ground for too long.
MARIO_STATISTICS = (
    Statistic(
        "cleared",
        "mean",
        "share of episodes that cleared the stage, or the last one of the whole game",
        window="clear_rate",
        figure="clear_rate",
        curve="clear_rate",
        is_rate=True,
        chart=("Learning", "clear rate"),
        label="clears",
    ),
    Statistic(
        "stages_cleared",
        "mean",
        "stages cleared per episode",
        window="stages_cleared_mean",
        figure="mean_stages_cleared",
        chart=("Play", "stages cleared"),
    ),
    Statistic(
        "max_x",
        "mean",
        "largest x of an episode, pixels",
        window="max_x_mean",
        figure="mean_x",
        curve="mean_x",
        chart=("Play", "largest x"),
    ),
    Statistic(
        "max_x",
        "max",
        "largest x of all, pixels",
        window="max_x",
        total="best_x",
        figure="best_x",
        curve="best_x",
        chart=("Play", "largest x"),
        label="best x",
    ),
    Statistic(
        "stalled",
        "mean",
        "share of episodes that ended without new ground for too long",
        window="stall_rate",
        figure="stall_rate",
        chart=("Play", "stalls"),
    ),
    Statistic("warped", "sum", "episodes that ended in a warp zone", total="warps", figure="warps"),
    Statistic("loops", "sum", "times a maze took Mario back", total="loops", figure="loops"),
    Statistic("cleared", "sum", "episodes that cleared their stage", total="clears", label="clears"),
)
# is_success: 0 or 1, reported by many Gymnasium environments at the last step of an episode.
GYMNASIUM_STATISTICS = (
    Statistic(
        "is_success",
        "mean",
        "share of episodes that succeeded",
        window="success_rate",
        figure="success_rate",
        curve="success_rate",
        is_rate=True,
        label="successes",
    ),
)
STATISTICS = (*MARIO_STATISTICS, *GYMNASIUM_STATISTICS)
GYMNASIUM_FLAGS = ("is_success",)  # copied from the info of a Gymnasium environment
MARIO_COLUMNS = ("max_x", "cleared", "warped", "loops", "stalled")
ENDS = Ends("max_x", "cleared", "rollout/end_x")
VIEWED = {"max_x": "x"}  # entries shown beside a rendered game, and their labels


def statistics_of(env: Env) -> tuple[Statistic, ...]:
    """The figures of an environment."""
    return MARIO_STATISTICS if env.id in WORLDS else GYMNASIUM_STATISTICS


def columns_of(env: Env) -> tuple[str, ...]:
    """The entries with a column of their own in the `episodes.csv` of a run."""
    return MARIO_COLUMNS if env.id in WORLDS else ()
