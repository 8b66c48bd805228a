"""Status reports of a role: what is sent once, and what with each status."""

from __future__ import annotations

from pathlib import Path

from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.net.sockets import Links
from apex_zmq.roles.status import StatusReporter
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import StageArchive, decode_status

PATIENCE_S = 30.0


def test_an_archive_is_sent_once_when_the_learner_is_there(directory: Path) -> None:
    changes = {"addresses.status": f"ipc://{directory}/status", "telemetry.status_interval_s": 0.01}
    config = loading.replace(Config(), changes)
    reporter = StatusReporter("actor", "actor-0", 1, config, Links(config))
    reporter.metrics = {"decisions": 1.0}
    reporter.archive = (StageArchive("1-1", 128.0, (1, 2), (0, 3)),)
    reporter.start()
    inbox = Links(config).bind("status", {Kind.STATUS: decode_status})
    statuses = [inbox.receive(PATIENCE_S) for _ in range(3)]
    reporter.close()
    inbox.close()
    assert [status and status.archive for status in statuses] == [reporter.archive, (), ()]
    assert all(status and status.metrics["decisions"] == 1 for status in statuses)
