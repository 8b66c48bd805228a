from __future__ import annotations

from pathlib import Path

import pytest

from apex_zmq.rundir.episodes import EPISODES, EpisodeLog
from apex_zmq.wire.messages import Episode


def test_a_file_that_cannot_be_opened_costs_its_lines_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / EPISODES).mkdir()
    log = EpisodeLog(tmp_path)
    for time in (1.0, 2.0):
        log.write(time, 10, [Episode(1.0, 7, 0.1)])
    log.close()
    assert caplog.text.count("episodes missing from episodes.csv, training continues") == 1
