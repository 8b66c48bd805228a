"""Options of the real parsers: those that stand for a setting reach the typed tree, and the page lists them all."""

from __future__ import annotations

import argparse
import pkgutil
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from apex_zmq.__main__ import PROGRAMS
from apex_zmq.cli import options
from apex_zmq.cli.options import ADDRESS_FLAGS, INSECURE_FLAG, TRAIN_FLAGS
from apex_zmq.config import loading, settings, sources
from apex_zmq.config.settings import Config

from ..conftest import ROOT

PAGE = (ROOT / "docs" / "PROGRAMS.md").read_text()
ROLES = ("actor", "replay", "learner", "forwarder")
FLAGS = TRAIN_FLAGS | ADDRESS_FLAGS | INSECURE_FLAG


class Parsed(Exception):  # noqa: N818 (it is no error)
    """Raised in place of a program's work."""

    def __init__(self, parser: argparse.ArgumentParser, config: Config | None = None) -> None:
        self.parser = parser
        self.config = config


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, argparse.Action]]:
    """The options of a program, by their long names."""

    def stop(parser: argparse.ArgumentParser, argv: object) -> None:
        raise Parsed(parser)

    def flags(program: str) -> dict[str, argparse.Action]:
        with monkeypatch.context() as patched:
            patched.setattr(options.Parser, "parse_args", stop)
            with pytest.raises(Parsed) as parsed:
                pkgutil.resolve_name(PROGRAMS[program])([])
        actions = parsed.value.parser._actions
        return {action.option_strings[-1]: action for action in actions if action.option_strings}

    return flags


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """The settings of a program, with which its work would begin."""
    parse = options.parse

    def stop(parser: argparse.ArgumentParser, argv: Sequence[str], **addressed: Any) -> None:
        raise Parsed(parser, parse(parser, argv, **addressed)[1])

    def resolve(program: str, *arguments: str) -> Config:
        with pytest.raises(Parsed) as parsed:
            pkgutil.resolve_name(PROGRAMS[program])(arguments)
        assert parsed.value.config is not None
        return parsed.value.config

    for name in settings.ADDRESSES:
        monkeypatch.delenv(f"APEX_{name.upper()}", raising=False)
    monkeypatch.setattr(options, "parse", stop)
    return resolve


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_has_a_help_and_its_setting(
    program: str, flags: Callable[..., dict[str, argparse.Action]]
) -> None:
    for flag, action in flags(program).items():
        assert action.help, flag
        if action.dest in settings.by_name():
            assert FLAGS[flag] == action.dest


def another(setting: settings.Setting) -> tuple[list[str], Any]:
    """Another value than the default: the words typed after the flag, and the setting then."""
    if setting.type == "bool":
        return [], True
    if setting.name.startswith("addresses."):
        return ["ipc:///x"], ("ipc:///x",) if isinstance(setting.default, tuple) else "ipc:///x"
    if setting.name == "env.stages":
        return ["1-2,8-4"], ("1-2", "8-4")
    if setting.type.startswith("int"):
        return ["50_099"], 50_099  # room for replay.min_size, below the limit of learner.batch_size
    return ["0.75"], 0.75


@pytest.mark.parametrize(("flag", "name"), FLAGS.items())
def test_option_changes_only_its_setting(flag: str, name: str, resolve: Callable[..., Config]) -> None:
    typed, value = another(settings.by_name()[name])
    changed = resolve("train" if flag in TRAIN_FLAGS else "actor", flag, *typed)
    assert changed == loading.replace(Config(), {name: value})
    assert changed != Config()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alpha", "7"], "--alpha: replay.alpha: wanted float >= 0 and <= 1, got 7"),
        (["--batch-size", "many"], '--batch-size: learner.batch_size: wanted int >= 1 and <= 65,536, got "many"'),
        (["--set", "learner.batchsize=64"], "--set: unknown setting learner.batchsize; did you mean"),
        (["--alpha", "0.5", "--set", "replay.alpha=7"], "--set: replay.alpha: wanted"),
        (["--alpha", "7", "--config", str(ROOT / "configs/cartpole.yaml")], "--alpha: replay.alpha: wanted"),
        (["--alpha", "["], "--alpha: [: the value is not valid YAML"),
        (["--stage", "1-2,9-9"], "stages run from 1-1 to 8-4 (env.stages from --stage)"),
        (
            ["--batch-size", "600", "--buffer-size", "500"],
            "raise replay.capacity (learner.batch_size from --batch-size, replay.capacity from --buffer-size)",
        ),
    ],
)
def test_an_error_names_the_option_that_gave_the_value(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pkgutil.resolve_name(PROGRAMS["train"])(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("apex-train: error: ")
    assert message in line


@pytest.mark.parametrize(("text", "value"), [("7-2", ["7-2"]), ("1-3,7-2", ["1-3", "7-2"]), ("all", "all")])
def test_stages_are_plain_words(text: str, value: object) -> None:
    assert sources.from_text("env.stages", text, "--stage") == ("env.stages", value, "--stage")


def test_overridden_value_is_not_checked(resolve: Callable[..., Config]) -> None:
    assert resolve("train", "--alpha", "7", "--set", "replay.alpha=0.5").replay.alpha == 0.5


def test_the_config_file_is_read(resolve: Callable[..., Config]) -> None:
    assert resolve("train", "--config", str(ROOT / "configs" / "cartpole.yaml")).env.id == "CartPole-v1"


def test_an_error_names_the_environment_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("APEX_EXPERIENCE", "ipc:///a,ipc:///b")
    assert pkgutil.resolve_name(PROGRAMS["actor"])([]) == 2
    assert "list one per shard (addresses.experience from APEX_EXPERIENCE)" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["actor", "replay", "learner", "doctor"])
def test_flags_win_over_the_environment_and_set_over_flags(
    program: str, resolve: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches(*arguments: str) -> object:
        return resolve(program, "--set", "env.noop_max=7", *arguments).addresses.batches

    monkeypatch.setenv("APEX_BATCHES", "tcp://environment:1")
    flag, setting = ("--batches", "tcp://flag:1"), ("--set", "addresses.batches=tcp://set:1")
    assert batches() == "tcp://environment:1"
    assert batches(*flag) == "tcp://flag:1"
    assert batches(*setting, *flag) == "tcp://set:1"


def test_batches_may_have_an_address_for_each_rank(resolve: Callable[..., Config]) -> None:
    resolved = resolve("replay", "--batches", "tcp://host:1,tcp://host:2")
    assert resolved.addresses.batches == ("tcp://host:1", "tcp://host:2")


def test_apex_train_chooses_addresses_itself(resolve: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APEX_BATCHES", "tcp://environment:1")
    resolved = resolve("train", "--set", "replay.shards=2")  # without an address for the second
    assert resolved.addresses == Config().addresses


def documented() -> Iterator[tuple[str, str, str, str]]:
    """Program, option, meaning and default of every row of the page's tables of options."""
    for cells in re.findall(r"^\| `(--[\w-]+)[^|]*\| ([^|]*) \| ([^|]*) \|(?: (.*))? \|$", PAGE, re.MULTILINE):
        option, programs, meaning, default = cells
        for named in programs.split(", "):
            for each in ROLES if named == "roles" else (named,):
                yield each, option, meaning, default


def test_the_page_lists_the_options_of_every_program(flags: Callable[..., dict[str, argparse.Action]]) -> None:
    listed = [(program, option) for program, option, _, _ in documented()]
    everywhere = {"--help", "--version"}
    assert len(listed) == len(set(listed))
    assert set(listed) == {(program, flag) for program in PROGRAMS for flag in flags(program) if flag not in everywhere}


def test_the_page_has_settings_and_defaults_of_the_options_of_apex_train() -> None:
    rows = {option: (meaning, default) for program, option, meaning, default in documented() if program == "train"}
    defaults = {setting.name: setting.default for setting in settings.settings()} | {"env.stages": "1-1"}
    for flag, name in TRAIN_FLAGS.items():
        meaning, default = rows[flag]
        assert f"`{name}`" in meaning, flag
        assert re.sub(r",(?=\d{3})", "", default) == ("none" if defaults[name] is None else str(defaults[name])), flag
