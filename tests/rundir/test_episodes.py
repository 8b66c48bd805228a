from __future__ import annotations

from pathlib import Path

import pytest

from apex_zmq.rundir.episodes import EPISODES, EpisodeLog
from apex_zmq.wire.messages import Episode


def test_unwritable_file_is_logged_once_and_not_raised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / EPISODES).mkdir()
    log = EpisodeLog(tmp_path)
    for time in (1.0, 2.0):
        log.write(time, 10, [Episode(1.0, 7, 0.1)])
    log.close()
    assert caplog.text.count("episodes missing from episodes.csv, training continues") == 1


def test_a_line_has_the_columns_of_its_environment(tmp_path: Path) -> None:
    for _ in range(2):  # a resumed run goes on below
        log = EpisodeLog(tmp_path, ("max_x", "cleared"))
        log.write(3.25, 40, [Episode(12.5, 300, 0.01, "1-1", {"max_x": 3161.0, "cleared": 1.0, "other": 7.0})])
        log.write(4.0, 50, [Episode(-3.0, 17, 0.4)])
        log.close()
    lines = (tmp_path / EPISODES).read_text().splitlines()
    assert lines[:3] == [
        "time,decisions,epsilon,stage,return,length,max_x,cleared",
        "3.2,40,0.01,1-1,12.5,300,3161,1",
        "4.0,50,0.4,,-3,17,,",
    ]
    assert lines[3:] == lines[1:3]
