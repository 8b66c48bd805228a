"""Options of the real parsers: each has a test, and those that stand for a setting reach the typed tree."""

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
from apex_zmq.config import loading, settings
from apex_zmq.config.settings import Config

from ..conftest import ROOT

PAGE = (ROOT / "docs" / "PROGRAMS.md").read_text()
ROLES = ("actor", "replay", "learner", "forwarder")
FLAGS = TRAIN_FLAGS | ADDRESS_FLAGS | INSECURE_FLAG
# Other options: the test that fails when the option does nothing. With a program, of that one alone.
ELSEWHERE = {
    "--help": "test_help_names_every_setting",
    "--version": "test_version",
    "--config": "test_the_config_file_is_read",
    "--set": "test_flags_win_over_the_environment_and_set_over_flags",
    "--run-dir": "test_mario_run_ends_with_curves_and_a_playable_checkpoint",
    "--resume": "test_interrupted_run_saves_and_resumes_where_it_was",
    "--init-from": "test_init_from_starts_with_parameters_of_another_run",
    "--tcp": "test_interrupted_run_saves_and_resumes_where_it_was",
    "--log-format": "test_every_role_has_a_log_file_of_the_format_asked_for",
    "--log-dir": "test_role_started_alone_logs_to_log_dir",
    "--bind": "test_forwarder_serves_late_actors_after_the_learner_ended",
    "--shard": "test_two_shards_share_experience_and_batches",
    "--actor-index": "test_program_uses_actor_index_and_num_lanes",
    "--num-lanes": "test_program_uses_actor_index_and_num_lanes",
    "--once": "test_a_run_is_shown_once_by_options_flag_and_environment",
    "--timeout": "test_without_a_learner_the_program_says_so",
    "top --json": "test_a_run_is_shown_once_by_options_flag_and_environment",
    "--render": "test_run_continues_after_losing_its_window_or_display",
    "eval --checkpoint": "test_mario_run_ends_with_curves_and_a_playable_checkpoint",
    "eval --episodes": "test_eval_options_affect_the_episodes",
    "eval --protocol": "test_eval_options_affect_the_episodes",
    "eval --seed": "test_eval_options_affect_the_episodes",
    "eval --video": "test_eval_writes_a_video_of_the_game",
    "eval --json": "test_mario_run_ends_with_curves_and_a_playable_checkpoint",
    "eval --emulator": "test_checkpoint_plays_on_the_requested_emulator",
    "eval --follow": "test_live_run_is_evaluated_periodically_and_best_is_kept",
    "eval --keys": "test_run_with_keys_is_followed_with_evaluator_keys",
    "keys --role": "test_secrets_are_owner_only_and_allow_lists_match_roles",
    "keys --behind": "test_secrets_are_owner_only_and_allow_lists_match_roles",
    "keys --remove": "test_removed_client_is_on_no_allow_list",
    "eval --every": "test_versions_within_the_every_interval_are_skipped",
    "doctor --role": "test_a_run_of_apex_train_is_checked_without_addresses",
    "doctor --json": "test_before_a_run_all_is_well_and_nobody_is_there_to_compare_with",
    "play --checkpoint": "test_play_writes_a_video_of_the_whole_picture",
    "play --episodes": "test_play_options_affect_the_episodes",
    "play --protocol": "test_play_options_affect_the_episodes",
    "play --seed": "test_play_options_affect_the_episodes",
    "play --video": "test_play_writes_a_video_of_the_whole_picture",
}
TESTS = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]


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
def test_every_option_has_a_test_and_a_help(program: str, flags: Callable[..., dict[str, argparse.Action]]) -> None:
    for flag, action in flags(program).items():
        assert action.help, flag
        if action.dest in settings.by_name():
            assert FLAGS[flag] == action.dest
            continue
        named = ELSEWHERE.get(f"{program} {flag}", ELSEWHERE.get(flag))
        assert named is not None, f"{program} {flag}: name its test in ELSEWHERE"
        (text,) = (text for text in TESTS if f"def {named}(" in text)
        assert flag in text, f"the file of {named} does not try {flag}"


def test_every_entry_names_an_existing_option(flags: Callable[..., dict[str, argparse.Action]]) -> None:
    known = {program: flags(program).keys() for program in PROGRAMS}
    for entry in [*FLAGS, *ELSEWHERE]:
        program, _, flag = entry.rpartition(" ")
        assert any(flag in known[each] for each in ([program] if program else PROGRAMS)), entry


def another(setting: settings.Setting) -> tuple[list[str], Any]:
    """Another value than the default: the words typed after the flag, and the setting then."""
    if setting.type == "bool":
        return [], True
    if setting.name.startswith("addresses."):
        return ["ipc:///x"], ("ipc:///x",) if isinstance(setting.default, tuple) else "ipc:///x"
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
        (["--alpha", "["], "--alpha: [ is not valid YAML"),
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
    defaults = {setting.name: setting.default for setting in settings.settings()}
    for flag, name in TRAIN_FLAGS.items():
        meaning, default = rows[flag]
        assert f"`{name}`" in meaning, flag
        assert re.sub(r",(?=\d{3})", "", default) == ("none" if defaults[name] is None else str(defaults[name])), flag
