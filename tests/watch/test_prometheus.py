"""The HTTP endpoint of a role for Prometheus."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from apex_zmq.cli.launch import free_ports
from apex_zmq.config import loading
from apex_zmq.config.settings import Config, Telemetry
from apex_zmq.errors import ConfigError
from apex_zmq.net.sockets import Links
from apex_zmq.roles.status import StatusReporter
from apex_zmq.watch.prometheus import Endpoint, families, serve
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import decode_status

from ..statuses import status


def scrape(port: int, host: str = "127.0.0.1") -> dict[str, tuple[float, dict[str, str]]]:
    """Values and labels of all samples, by name."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://{host}:{port}/metrics") as answer:
        found = text_string_to_metric_families(answer.read().decode())
        return {sample.name: (sample.value, sample.labels) for family in found for sample in family.samples}


@pytest.fixture
def served(opened: Callable[[Any], Any]) -> Callable[..., Endpoint]:
    def start(port: int, name: str = "learner", host: str = "127.0.0.1") -> Endpoint:
        config = loading.replace(Config(), {"telemetry.metrics_port": port, "telemetry.metrics_host": host})
        endpoint: Endpoint = opened(serve(config.telemetry, lambda: status(name)))
        return endpoint

    return start


def test_a_status_has_names_labels_and_types() -> None:
    reported = status("replay-1", metrics={"inserts": 12.0, "size": 5.0, "segments_lost": 1.0})
    found = {family.name: family for family in families(reported)}
    (inserts,) = found["apex_replay_inserts"].samples
    assert (inserts.name, inserts.value) == ("apex_replay_inserts_total", 12)
    assert inserts.labels == {"name": "replay-1", "shard": "1"}
    assert found["apex_replay_inserts"].documentation == "transitions inserted (transitions)"
    types = {name.removeprefix("apex_replay_"): family.type for name, family in found.items()}
    assert types.pop("inserts") == "counter"
    assert types == dict.fromkeys(["size", "segments_lost", "start_time_s", "progress_time_s"], "gauge")  # lost shrinks


def test_tags_of_the_learner_are_converted_to_metric_names() -> None:
    reported = status("learner", metrics={"rollout/ep_rew_mean_by_epsilon/to_0.001": 7.5})
    tag, *_ = (sample for family in families(reported) for sample in family.samples)
    assert (tag.name, tag.value) == ("apex_learner_rollout_ep_rew_mean_by_epsilon_to_0_001", 7.5)
    assert tag.labels == {"name": "learner"}


def test_a_second_role_takes_the_next_free_port(served: Callable[..., Endpoint]) -> None:
    (port,) = free_ports(1)
    first, second = served(port, "actor-1"), served(port, "actor-2")
    assert port <= first.port < second.port
    names = [scrape(each.port)["apex_actor_start_time_s"][1]["name"] for each in (first, second)]
    assert names == ["actor-1", "actor-2"]


def test_metrics_are_served_on_the_configured_address(served: Callable[..., Endpoint]) -> None:
    (port,) = free_ports(1)
    served(port, host="127.0.0.2")
    assert scrape(port, "127.0.0.2")
    with pytest.raises(urllib.error.URLError):
        scrape(port, "127.0.0.1")
    with pytest.raises(
        ConfigError, match=r"cannot serve metrics on 192\.0\.2\.1:.*telemetry\.metrics_host to an address of"
    ):
        served(port, host="192.0.2.1")


def test_nothing_is_served_by_default() -> None:
    assert serve(Telemetry(), lambda: status("learner")) is None


def test_a_role_serves_its_status(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    address = f"ipc://{tmp_path}/status"
    changes = {"addresses.status": address, "telemetry.status_interval_s": 0.02, "telemetry.metrics_port": port}
    config = loading.replace(Config(), changes)
    links = Links(config)
    with closing(links.bind("status", {Kind.STATUS: decode_status})) as inbox:
        reporter = StatusReporter("actor", "actor-7", 1, config, links)
        reporter.metrics = {"decisions": 41.0}
        reporter.start()
        assert inbox.receive(30) is not None
        samples = scrape(port)
        reporter.close()
    assert samples["apex_actor_decisions_total"] == (41, {"name": "actor-7"})
    assert samples["apex_actor_rss_bytes"][0] > 1e6
    assert samples["apex_actor_cpu_s_total"][0] > 0
    with pytest.raises(urllib.error.URLError):
        scrape(port)
