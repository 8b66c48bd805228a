"""The table of metrics, compared with the documents, the charts, the statistics and the statuses."""

from __future__ import annotations

import re

import pytest

from apex_zmq.config.settings import Config, Env
from apex_zmq.envs.info import statistics_of
from apex_zmq.roles.status import process_metrics
from apex_zmq.watch import stats
from apex_zmq.watch.metrics import COUNTERS, METRICS, SHARES, Metric, curves, find, rates, unknown

from ..conftest import ROOT

DOCUMENTS = {path.name: path.read_text() for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]}
EVERY_ROLE = "every role"


def documented(heading: str) -> dict[str, dict[str, str]]:
    """Rows of the tables of metrics below a heading of PROTOCOL.md, by name; a row may have several names."""
    section = re.search(rf"^### {re.escape(heading)}\n(.*?)(?=^### )", DOCUMENTS["PROTOCOL.md"], re.M | re.S)
    assert section
    found = {}
    for block in re.findall(r"(?:^\|.*\n)+", section[1], re.M):
        columns, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()]
        if columns[0] == "metric":
            for names, *cells in rows:
                for name in names.split(", "):
                    assert name not in found, name
                    found[name] = dict(zip(columns[1:], cells, strict=True))
    return found


def test_the_protocol_lists_every_metric_of_a_status_with_its_role_and_kind() -> None:
    rows = documented("STATUS (7)")
    reported = {metric.name: metric for metric in METRICS if metric.roles != ("learner",)}
    assert rows.keys() == reported.keys()
    for name, metric in reported.items():
        roles = EVERY_ROLE if len(metric.roles) > 2 else metric.roles[0]
        assert rows[name]["from"] == roles, name
        assert (rows[name]["unit"].startswith("counter")) == (metric.kind != "gauge"), name
        assert (re.search(r"\bs\b", rows[name]["unit"]) is not None) == (metric.unit == "s"), name


def test_the_protocol_lists_every_metric_of_the_learner() -> None:
    rows = documented("RELAYED_STATUS (8)").keys()
    own = {metric.name for metric in METRICS if "learner" in metric.roles} - {"decisions"}  # described in the text
    assert rows == own | {"train/updates"}


def test_every_curve_is_documented() -> None:
    text = " ".join(DOCUMENTS.values())
    for curve in curves():
        tag = curve.name.partition("/to_*")[0].removesuffix("_*").removesuffix("/*")
        assert tag.rpartition("/")[2] in text, tag
    faults = re.findall(r"`([a-z]+/[a-z_]+)`", DOCUMENTS["WATCHING.md"])
    assert {curve.name for curve in curves() if curve.chart == ("Machinery", "faults")} <= set(faults)


def test_names_are_unique_and_can_be_found() -> None:
    rows = [*METRICS, *curves()]
    assert len({row.name for row in rows}) == len(rows)
    assert all(find(row.name) is row or find(row.name) == row for row in rows)
    by_epsilon = find("rollout/ep_rew_mean_by_epsilon/to_0.001")
    assert by_epsilon is not None
    assert by_epsilon.kind == "gauge"
    assert find("no such metric") is None
    assert unknown("actor", ["decisions", "inserts", "rss_bytes", "nonsense"]) == {"inserts", "nonsense"}
    assert unknown("learner", ["train/loss", "wait/rank_3", "memory/actor_bytes", "updates"]) == set()


@pytest.mark.parametrize("row", METRICS, ids=lambda row: row.name)
def test_rows_are_consistent(row: Metric) -> None:
    assert row.help
    assert row.help[0].islower() or "." in row.help or row.help.startswith(("CPU", "PRIORITIES"))
    assert not row.help.endswith(".")
    assert bool(row.refuses) <= (row.kind == "counter")
    if row.curve is not None:
        assert (row.curve.how in ("rate", "share", "growth")) == (row.kind != "gauge")
        assert (row.curve.how == "share") == (row.name in COUNTERS and row.unit == "s")


def test_rates_are_computed_for_counters_in_both_statuses() -> None:
    before = {"decisions": 100.0, "blocked_s": 1.0, "cpu_s": 0.0, "size": 5.0, "segments_lost": 3.0}
    after = {"decisions": 140.0, "blocked_s": 2.0, "cpu_s": 8.0, "size": 9.0, "segments_lost": 1.0, "inserts": 7.0}
    assert rates(before, after, 2.0) == {
        "decisions_per_s": 20,
        "blocked": 0.5,
        "cpu": 4,
        "segments_lost_per_s": -1,  # a gap was filled
    }
    assert rates(before, after, 0.0) == {}
    assert {"blocked", "waited", "idle"} <= SHARES
    assert "cpu" not in SHARES


def test_the_table_lists_every_number_of_a_summary() -> None:
    summed = stats.RunStats()
    assert unknown("learner", summed.summary(1.0, 0)) == set()


def test_the_table_lists_the_metrics_of_every_process() -> None:
    names = process_metrics().keys()
    for role in ("actor", "replay", "learner", "forwarder"):
        assert unknown(role, names) == set()
    assert {metric.name for metric in METRICS if len(metric.roles) > 2} == names


def test_charts_depend_on_the_statistics_of_the_environment() -> None:
    titles = {curve.chart[1] for curve in curves(statistics_of(Env(id="CartPole-v1"))) if curve.chart}
    assert {"return", "faults"} <= titles
    assert not {"clear rate", "largest x"} & titles
    assert {"clear rate", "largest x"} <= {
        curve.chart[1] for curve in curves(statistics_of(Config().env)) if curve.chart
    }
