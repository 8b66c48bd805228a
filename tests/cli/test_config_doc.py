"""docs/CONFIGURATION.md says what the config says."""

from __future__ import annotations

import re

import pytest

from apex_zmq.cli import config_doc
from apex_zmq.cli.options import TRAIN_FLAGS
from apex_zmq.config import loading, settings
from apex_zmq.errors import ConfigError

from ..conftest import ROOT

TEXT = (ROOT / "docs" / "CONFIGURATION.md").read_text()


def row(name: str) -> list[str]:
    """The cells of a setting's row, in its section's table."""
    section, _, leaf = name.rpartition(".")
    match = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert match
    (line,) = [line for line in match[1].splitlines() if line.startswith(f"| `{leaf}` |")]
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_document_is_current() -> None:
    assert config_doc.document() == TEXT, "run `make docs`"


def test_every_setting_has_a_row_with_its_description() -> None:
    for setting in settings.settings():
        shown = row(setting.name)[4].replace("\\", "")
        assert shown.startswith(setting.description.replace("\\", ""))


def test_every_apex_train_option_is_listed_with_its_setting() -> None:
    for flag, name in TRAIN_FLAGS.items():
        assert f"`{flag}`" in row(name)[4]


@pytest.mark.parametrize(
    ("name", "bounds", "beyond"),
    [
        ("env.frame_skip", ">= 1, <= 60", "61"),
        ("agent.gamma", ">= 0, <= 1", "1.5"),
        ("actor.repeat_zeta", "> 1", "1"),
        ("run.max_minutes", "> 0", "0"),
    ],
)
def test_documented_ranges_are_enforced(name: str, bounds: str, beyond: str) -> None:
    assert row(name)[2] == bounds
    with pytest.raises(ConfigError, match=re.escape(name)):
        loading.load(None, [f"{name}={beyond}"])


def test_ready_configs_table_shows_only_non_default_values() -> None:
    _, _, ready = TEXT.partition("## The ready configs")
    rows = {line.split("`")[1]: line for line in ready.splitlines() if line.startswith("| `")}
    header = next(line for line in ready.splitlines() if line.startswith("| setting"))
    for path in config_doc.CONFIGS.glob("*.yaml"):
        column = [cell.strip() for cell in header.split("|")].index(path.stem)
        batch_size = loading.load(path).learner.batch_size
        shown = rows["learner.batch_size"].split("|")[column].strip()
        assert shown == (f"`{batch_size}`" if batch_size != settings.Learner().batch_size else "")
    assert "replay.epsilon" not in rows  # which none of them changes
