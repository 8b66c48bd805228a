from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest

from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.errors import ConfigError
from apex_zmq.replay.disk import budget

CONFIG = loading.replace(
    Config(), {"replay.arena_bytes": 3_000_000_000, "replay.capacity": 1000, "replay.min_size": 500}
)


def within(limits: dict[str, str], membership: str, at: Path, patch: pytest.MonkeyPatch) -> None:
    """Files as the kernel shows them to a process in such control groups."""
    for name, limit in limits.items():
        path = at / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")
    (at / "membership").write_text(membership)
    patch.setattr(budget, "CONTROL_GROUPS", at / "cgroup")
    patch.setattr(budget, "MEMBERSHIP", at / "membership")


@pytest.mark.parametrize(
    ("limits", "membership"),
    [
        ({"memory.max": "2000000000"}, "0::/\n"),  # a container
        (
            {"system.slice/apex.service/memory.max": "max", "system.slice/memory.max": "2000000000"},
            "0::/system.slice/apex.service\n",
        ),
        (
            {"memory/job/memory.limit_in_bytes": "2000000000", "memory/memory.limit_in_bytes": "9223372036854771712"},
            "5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n",
        ),
        ({"memory/memory.limit_in_bytes": "2000000000"}, "4:memory:/docker/0123\n"),  # seen from within
    ],
    ids=["container", "unit", "job", "older container"],
)
def test_cgroup_limit_below_machine_memory_is_respected(
    limits: dict[str, str], membership: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    within(limits, membership, tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match=re.escape("replay needs 3.0 GB of memory, the limit here is 2.0 GB")):
        budget.check_memory(CONFIG, shards=1)


@pytest.mark.parametrize("membership", ["0::/\n", "0::/a/b\n", "4:memory:/\n", "9:name=systemd:/\n", ""])
def test_machine_memory_is_the_limit_without_a_cgroup_limit(
    membership: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"a/memory.max": "max", "memory/memory.limit_in_bytes": "9223372036854771712"}
    within(limits, membership, tmp_path, monkeypatch)
    total = psutil.virtual_memory().total
    fits = loading.replace(CONFIG, {"replay.arena_bytes": total - 10**6})
    assert total - 10**6 < budget.check_memory(fits, shards=1) <= total
    with pytest.raises(ConfigError, match=f"limit here is {total / 1e9:.1f} GB"):
        budget.check_memory(loading.replace(CONFIG, {"replay.arena_bytes": total}), shards=1)
