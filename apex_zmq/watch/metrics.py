"""The table of metrics: the numbers that processes report in their statuses, and the curves derived from them.

Statuses, statistics, TensorBoard, Prometheus, apex-top, its verdict and apex-doctor read this table, and tests compare
the documents with it. To add a metric, add a row here and report it in the role.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from apex_zmq.envs.info import STATISTICS, Statistic

ROLES = ("actor", "replay", "learner", "forwarder")
LEARNING, PLAY, MACHINERY = "Learning", "Play", "Machinery"
WAITING, RATES, FAULTS = (MACHINERY, "waiting"), (LEARNING, "rates, 1/s"), (MACHINERY, "faults")

Chart = tuple[str, str]


class Curve(NamedTuple):
    """A curve of the run, aggregated from one metric over processes.

    how: rate: growth per second, summed over processes. share: share of time, averaged over the live processes of the
        metric's role. growth: growth since the learner started, summed over processes. sum, mean: of the newest values
        of live processes.
    """

    tag: str
    how: Literal["rate", "share", "growth", "sum", "mean"]
    chart: Chart | None = None


class Metric(NamedTuple):
    """A metric of a status, or a curve of the run (which the learner's status holds under its TensorBoard tag).

    name: name in the status, or tag; a trailing * matches any suffix.
    roles: roles that report it; empty: a curve of evaluations, which no status holds.
    kind: counters start at 0 with each process and never decrease; updowncounters may decrease (as in OpenTelemetry).
    unit: empty: dimensionless.
    curve: the curve aggregated from this metric; None: there is none.
    chart: of a curve: category and title on TensorBoard's page "Custom Scalars".
    figure: of a curve of evaluations: name of the figure in an evaluation.
    final: of a curve: whether TensorBoard's page "HParams" shows its last value.
    refuses: of a counter of refusals: the refused thing; else empty.
    """

    name: str
    roles: tuple[str, ...]
    kind: Literal["counter", "updowncounter", "gauge"]
    unit: str
    help: str
    curve: Curve | None = None
    chart: Chart | None = None
    figure: str = ""
    final: bool = False
    refuses: str = ""

    @property
    def rate(self) -> str:
        """Name of a counter's growth per second: X for a counter of seconds X_s (a share of time), else X_per_s."""
        return self.name.removesuffix("_s") if self.unit == "s" else f"{self.name}_per_s"


def _actor(name: str, unit: str, help: str, curve: Curve | None = None) -> Metric:
    return Metric(name, ("actor",), "gauge", unit, help, curve)


def _replay(name: str, unit: str, help: str, curve: Curve | None = None) -> Metric:
    return Metric(name, ("replay",), "gauge", unit, help, curve)


def _learner(name: str, unit: str, help: str) -> Metric:
    return Metric(name, ("learner",), "gauge", unit, help)


def _counter(role: str, name: str, unit: str, help: str, curve: Curve | None = None, refuses: str = "") -> Metric:
    return Metric(name, (role,), "counter", unit, help, curve, refuses=refuses)


METRICS: tuple[Metric, ...] = (
    Metric(
        "decisions",
        ("actor", "learner"),
        "counter",
        "decisions",
        "agent steps of all lanes; as reported by the learner: of the whole run",
        Curve("time/decisions_per_s", "rate", RATES),
    ),
    _counter("actor", "blocked_s", "s", "time spent waiting for a shard", Curve("wait/actors", "share", WAITING)),
    _counter("actor", "segments", "segments", "segments sent"),
    _counter(
        "actor",
        "dropped_segments",
        "segments",
        "segments dropped because no shard accepted them",
        Curve("actors/dropped_segments", "growth", FAULTS),
    ),
    _counter("actor", "restarts", "episodes", "episodes begun from saved states", Curve("restarts/episodes", "growth")),
    _counter(
        "actor",
        "explorations",
        "episodes",
        "episodes of random actions begun from saved states",
        Curve("restarts/explorations", "growth"),
    ),
    _counter("actor", "restart_passes", "episodes", "of both, those that got on", Curve("restarts/passes", "growth")),
    _counter(
        "actor",
        "restart_decisions",
        "decisions",
        "decisions of episodes begun from saved states",
        Curve("restarts/decisions_per_s", "rate"),
    ),
    _actor("archive_cells", "", "cells of the archive of saved states", Curve("restarts/cells", "sum")),
    _actor("archive_bytes", "bytes", "memory of saved states", Curve("restarts/bytes", "sum")),
    _actor("queued_segments", "segments", "segments waiting for a shard"),
    _actor("parameter_version", "", "version of the parameters in use"),
    _actor("parameter_update", "updates", "gradient steps at publication of the parameters in use"),
    _actor(
        "parameter_age_s",
        "s",
        "time since the parameters in use arrived",
        Curve("actors/parameter_age_s", "mean", (MACHINERY, "parameter age, s")),
    ),
    _counter("replay", "inserts", "transitions", "transitions inserted", Curve("time/inserts_per_s", "rate", RATES)),
    _counter("replay", "samples", "transitions", "transitions sampled for batches"),
    _counter(
        "replay",
        "insert_blocked_s",
        "s",
        "time during which the governor blocked inserts",
        Curve("wait/replay_insert", "share", WAITING),
    ),
    _counter(
        "replay",
        "sample_blocked_s",
        "s",
        "time during which the governor blocked batches",
        Curve("wait/replay_sample", "share", WAITING),
    ),
    _counter("replay", "link_blocked_s", "s", "time during which batches were allowed but the learner accepted none"),
    _counter("replay", "idle_s", "s", "time spent waiting for any reason"),
    _replay("in_flight", "batches", "batches sent but not acknowledged yet"),
    _replay(
        "lost_batches", "batches", "batches that the current learner did not acknowledge within replay.credit_timeout_s"
    ),
    _counter("replay", "stale_updates", "messages", "PRIORITIES messages for another incarnation of the shard"),
    _counter("replay", "evicted_updates", "transitions", "priorities of transitions that are not stored any more"),
    _counter("replay", "retired", "transitions", "transitions retired"),
    _replay("mass", "", "sum of the stored priorities, each to the power of alpha"),
    _replay("min_size_left", "transitions", "transitions still to be inserted before the first batch"),
    _replay("samples_per_insert_target", "", "replay.samples_per_insert; 0: not limited"),
    _replay("sample_age", "transitions", "mean age of the last batch, in transitions inserted since"),
    _counter("replay", "segments_received", "segments", "segments stored; duplicates are not counted"),
    Metric(
        "segments_lost",
        ("replay",),
        "updowncounter",
        "segments",
        "segments that never arrived; decreases when a gap is filled",
        Curve("replay/segments_lost", "growth", FAULTS),
    ),
    _counter(
        "replay",
        "segments_duplicate",
        "segments",
        "segments that arrived more than once",
        Curve("replay/segments_duplicate", "growth", FAULTS),
    ),
    _counter(
        "replay",
        "segments_refused",
        "segments",
        "segments refused as inconsistent",
        Curve("replay/segments_refused", "growth", FAULTS),
        "segments",
    ),
    _replay("size", "transitions", "transitions stored", Curve("replay/size", "sum")),
    _replay("bytes", "bytes", "bytes stored", Curve("replay/bytes", "sum")),
    _replay("surplus", "transitions", "samples in excess of the ratio of samples to inserts, over all restarts"),
    _replay("recovered", "transitions", "transitions recovered from the shard's files at its start"),
    _replay("dropped", "transitions", "transitions missing from the shard's files at its start"),
    _counter("replay", "snapshots", "snapshots", "snapshots written"),
    _replay("snapshot_age_s", "s", "time since the newest snapshot"),
    _counter("replay", "refused_messages", "messages", "messages dropped as invalid", refuses="messages"),
    _counter("forwarder", "forwarded", "publications", "publications forwarded"),
    _counter(
        "learner", "updates", "updates", "gradient steps of this process", Curve("time/updates_per_s", "rate", RATES)
    ),
    _counter("learner", "waited_s", "s", "time spent waiting for batches", Curve("wait/learner", "share", WAITING)),
    _counter("learner", "decode_s", "s", "time spent decoding batches"),
    _learner("decoded", "batches", "batches decoded and ready"),
    _counter("learner", "bad_steps", "steps", "gradient steps skipped", Curve("train/bad_steps", "growth", FAULTS)),
    _counter(
        "learner",
        "corrupted_windows",
        "windows",
        "windows that differ from what their actor sent",
        Curve("train/corrupted_windows", "growth", FAULTS),
    ),
    _counter("learner", "refused_statuses", "messages", "statuses dropped as invalid", refuses="statuses"),
    _counter("learner", "refused_batches", "messages", "batches dropped as invalid", refuses="batches"),
    _learner("live_actor", "processes", "actors with a status in the last ten seconds"),
    _learner("live_replay", "processes", "shards with a status in the last ten seconds"),
    _learner("live_forwarder", "processes", "forwarders with a status in the last ten seconds"),
    _learner("shards", "", "replay.shards"),
    _learner("batch_size", "transitions", "learner.batch_size"),
    _learner("sync_every", "updates", "learner.sync_every"),
    Metric("rss_bytes", ROLES, "gauge", "bytes", "resident memory of the process"),
    Metric("cpu_s", ROLES, "counter", "s", "CPU time of the process, summed over threads"),
    Metric("host_cpu", ROLES, "gauge", "share", "share of the host's cores in use, 0 to 1"),
    Metric("refused_peers", ROLES, "counter", "connections", "connections of peers refused", refuses="peers"),
    Metric("failed_handshakes", ROLES, "counter", "connections", "own connections that a server refused"),
)


def _curve(tag: str, help: str, chart: Chart | None = None, *, final: bool = False, unit: str = "") -> Metric:
    return Metric(tag, ("learner",), "gauge", unit, help, chart=chart, final=final)


def _evaluated(tag: str, figure: str, help: str, chart: Chart | None = None) -> Metric:
    return Metric(tag, (), "gauge", "", f"{help}, of an evaluation", chart=chart, figure=figure)


def _aggregated(metric: Metric) -> Metric:
    """The curve aggregated from a metric."""
    assert metric.curve is not None
    tag, how, chart = metric.curve
    unit = {"rate": "1/s", "share": "share"}.get(how, metric.unit)
    return _curve(tag, f"{how} over processes: {metric.help}", chart, unit=unit)


def _info_curves(statistics: Iterable[Statistic]) -> Iterable[Metric]:
    for each in statistics:
        chart = each.chart if any(each.chart) else None
        if each.window:
            yield _curve(f"rollout/{each.window}", f"{each.help}, of the last episodes", chart, final=each.is_rate)
            low_help = f"{each.help}, of the last episodes of low epsilon"
            yield _curve(f"rollout/low_epsilon/{each.window}", low_help, chart, final=each.is_rate)
        if each.is_rate:
            yield _curve(f"rollout/{each.window}_by_epsilon/to_*", f"{each.help}, by range of epsilon")
        if each.curve:
            yield _evaluated(f"eval/{each.curve}", each.figure, each.help, chart)
        if each.total:
            yield _curve(f"rollout/{each.total}", f"{each.help}, of the whole run", final=True)


def curves(statistics: Iterable[Statistic] = STATISTICS) -> tuple[Metric, ...]:
    """The curves of a run, in the order of their charts. statistics: those of the run's environment."""
    returns, length = (LEARNING, "return"), (PLAY, "episode length")
    return (
        _curve("rollout/ep_rew_mean", "mean return of the last episodes", returns, final=True),
        _curve("rollout/low_epsilon/ep_rew_mean", "mean return, episodes of low epsilon", returns, final=True),
        _evaluated("eval/mean_reward", "mean_return", "mean return", returns),
        _curve("rollout/ep_rew_mean_by_epsilon/to_*", "mean return by range of epsilon", (PLAY, "return by epsilon")),
        *_info_curves(statistics),
        _curve("rollout/ep_len_mean", "mean length of the last episodes", length, unit="decisions"),
        _curve("rollout/low_epsilon/ep_len_mean", "mean length, episodes of low epsilon", length, unit="decisions"),
        _evaluated("eval/mean_ep_length", "mean_length", "mean length in decisions"),
        _curve("rollout/episodes", "episodes of the whole run", unit="episodes"),
        _curve("rollout/episodes_by_epsilon/to_*", "episodes since the learner started, by range of epsilon"),
        _curve("train/updates", "gradient steps of the whole run", final=True, unit="updates"),
        _curve("train/loss", "loss", (LEARNING, "loss")),
        _curve("train/q_mean", "mean Q-value of the actions taken", (LEARNING, "Q")),
        _curve("replay/samples_per_insert", "samples per insert of the whole run", (LEARNING, "samples per insert")),
        *(_aggregated(metric) for metric in METRICS if metric.curve is not None),
        _curve("wait/rank_*", "share of time that a rank waits for batches", WAITING, unit="share"),
        _curve("actors/parameter_age_updates", "mean age of the actors' parameters", unit="updates"),
        _curve("train/td_error_mean", "mean absolute TD error", (MACHINERY, "|TD| and gradient")),
        _curve("train/grad_norm", "norm of the gradient before clipping", (MACHINERY, "|TD| and gradient")),
        _curve("train/learning_rate", "learning rate"),
        _curve("train/beta", "exponent of the importance weights"),
        _curve("memory/*", "resident memory of the live processes of a role", (MACHINERY, "resident memory, bytes")),
        _curve("time/restarts", "processes that replaced one of the same name", FAULTS, unit="processes"),
        _curve("actors/count", "live actors", unit="processes"),
    )


_KNOWN = {metric.name: metric for metric in (*METRICS, *curves())}
_PREFIXES = {name.removesuffix("*"): metric for name, metric in _KNOWN.items() if name.endswith("*")}
COUNTERS = {metric.name: metric for metric in METRICS if metric.kind != "gauge"}
# Rates that are shares of time. CPU time is not: a process may use several cores.
SHARES = {metric.rate for metric in COUNTERS.values() if metric.unit == "s"} - {"cpu"}
REFUSALS = {metric.name: metric.refuses for metric in METRICS if metric.refuses}


def find(name: str) -> Metric | None:
    """The row of a metric or curve; None: the name is unknown."""
    return _KNOWN.get(name) or next((row for prefix, row in _PREFIXES.items() if name.startswith(prefix)), None)


def unknown(role: str, names: Iterable[str]) -> set[str]:
    """The names that the table does not list for a role."""
    return {name for name in names if (row := find(name)) is None or role not in row.roles}


def rates(before: Mapping[str, float], after: Mapping[str, float], elapsed_s: float) -> dict[str, float]:
    """Growth per second of each counter that is in both, by `Metric.rate`; empty if no time has elapsed."""
    if elapsed_s <= 0:
        return {}
    return {
        COUNTERS[name].rate: (value - before[name]) / elapsed_s
        for name, value in after.items()
        if name in COUNTERS and name in before
    }
