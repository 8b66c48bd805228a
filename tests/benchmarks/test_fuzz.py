"""Hostile messages of every kind, a bounded number of them; `python -m benchmarks.fuzz` sends a million of each."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from typing import Any

import pytest

from apex_zmq.wire.codec import Kind
from benchmarks import fuzz

from ..conftest import ROOT

INPUTS = 1500  # per kind; tenths of a second
TARGETS = fuzz.targets()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_hostile_messages_are_refused_or_harmless(target: fuzz.Target) -> None:
    before = fuzz.peak_bytes()
    report = fuzz.fuzz(target, INPUTS, seed=0)
    assert not report.crashes, report.crashes[0]
    assert report.refused + report.accepted == INPUTS
    assert report.refused > INPUTS / 2
    assert report.accepted > INPUTS / 100  # so that what takes them is tried too
    assert fuzz.peak_bytes() - before < 200 << 20


def test_fuzz_targets_cover_every_message_kind() -> None:
    assert {target.kind for target in TARGETS} == set(Kind)


def test_crash_is_found_and_reproducible() -> None:
    def fragile(parts: Any) -> None:
        if len(parts[0]) % 7 == 0:
            raise IndexError(len(parts[0]))

    target = dataclasses.replace(TARGETS[0], decode=fragile, take=fuzz.nothing)
    crashes = fuzz.fuzz(target, 300, seed=3).crashes
    assert crashes
    assert "IndexError" in crashes[0]
    found = re.search(r"seed 3, input (\d+)", crashes[0])
    assert found
    assert fuzz.fuzz(target, int(found[1]) + 1, seed=3).crashes == crashes[:1]


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_million_messages_of_each_kind_cause_no_crash() -> None:
    ran = subprocess.run([sys.executable, "-m", "benchmarks.fuzz"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("0 crashes") == len(TARGETS)
