"""Every option of every program does what it says: those that are settings here, the others where `ELSEWHERE` names."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from apex_zmq.cli import main as cli
from apex_zmq.cli import program
from apex_zmq.cli.options import TRAIN_FLAGS
from apex_zmq.config import settings
from apex_zmq.config.settings import Config

from ..conftest import ROOT

PAGE = (ROOT / "docs" / "PROGRAMS.md").read_text()
PROGRAMS = sorted(cli.PROGRAMS)
ROLES = ("actor", "replay", "learner", "forwarder")
REQUIRED = {"forwarder": ("--bind", "tcp://host:8")}
# Of an option that stands for a setting: what is typed after it, the setting, its value then.
SETTINGS: dict[str, tuple[str, str, Any]] = {
    "--set": ("env.noop_max=7", "env.noop_max", 7),
    "--config": (str(ROOT / "configs" / "cartpole.yaml"), "env.id", "CartPole-v1"),
    "--experience": ("tcp://host:9", "addresses.experience", ("tcp://host:9",)),
    "--priorities": ("tcp://host:9", "addresses.priorities", ("tcp://host:9",)),
    "--batches": ("tcp://host:9", "addresses.batches", "tcp://host:9"),
    "--parameters": ("tcp://host:9", "addresses.parameters", "tcp://host:9"),
    "--status": ("tcp://host:9", "addresses.status", "tcp://host:9"),
    "--keys": ("keys/alice", "addresses.keys", "keys/alice"),
    "--insecure": ("", "addresses.insecure", True),
    "--num-actors": ("9", "run.num_actors", 9),
    "--batch-size": ("9", "learner.batch_size", 9),
    "--buffer-size": ("99_999", "replay.capacity", 99_999),
    "--episodes": ("9", "run.episodes", 9),
    "--sync-every": ("9", "learner.sync_every", 9),
    "--save-every": ("9", "learner.save_every", 9),
    "--learning-rate": ("0.9", "learner.learning_rate", 0.9),
    "--alpha": ("0.9", "replay.alpha", 0.9),
    "--beta": ("0.9", "learner.beta", 0.9),
    "--beta-annealing": ("0.9", "learner.beta_annealing", 0.9),
    "--max-minutes": ("0.9", "run.max_minutes", 0.9),
    "--max-decisions": ("9", "run.max_decisions", 9),
    "--max-updates": ("9", "run.max_updates", 9),
    "--seed": ("9", "run.seed", 9),
}
# Of the others: the test that fails when the option does nothing. With a program, of that one alone.
ELSEWHERE = {
    "--help": "test_help_names_every_setting",
    "--version": "test_version",
    "--run-dir": "test_mario_run_ends_by_itself_with_curves_and_a_checkpoint_that_plays",
    "--resume": "test_interrupted_run_saves_and_resumes_where_it_was",
    "--init-from": "test_a_run_starts_from_another_ones_parameters",
    "--tcp": "test_interrupted_run_saves_and_resumes_where_it_was",
    "--log-format": "test_every_role_has_a_log_file_of_the_format_asked_for",
    "--log-dir": "test_a_role_started_alone_logs_where_it_is_told",
    "--bind": "test_parameters_reach_early_and_late_actors_and_outlive_the_learner",
    "--shard": "test_two_shards_share_experience_and_batches",
    "--actor-index": "test_the_program_takes_its_place_among_the_actors",
    "--num-lanes": "test_the_program_takes_its_place_among_the_actors",
    "--once": "test_a_run_is_shown_once_by_options_flag_and_environment",
    "--timeout": "test_without_a_learner_the_program_says_so",
    "top --json": "test_a_run_is_shown_once_by_options_flag_and_environment",
    "--render": "test_a_run_is_shown_and_goes_on_without_window_or_display",
    "eval --checkpoint": "test_mario_run_ends_by_itself_with_curves_and_a_checkpoint_that_plays",
    "eval --episodes": "test_options_reach_the_games",
    "eval --protocol": "test_options_reach_the_games",
    "eval --seed": "test_options_reach_the_games",
    "eval --video": "test_eval_writes_a_video_of_the_game",
    "eval --json": "test_mario_run_ends_by_itself_with_curves_and_a_checkpoint_that_plays",
    "eval --emulator": "test_a_checkpoint_plays_on_the_emulator_asked_for",
    "eval --follow": "test_a_live_run_is_evaluated_every_few_versions_and_its_best_kept",
    "eval --keys": "test_a_run_with_keys_is_followed_with_those_of_an_evaluator",
    "keys --role": "test_secrets_are_for_their_owner_alone_and_lists_name_whom_a_role_lets_in",
    "keys --behind": "test_secrets_are_for_their_owner_alone_and_lists_name_whom_a_role_lets_in",
    "keys --remove": "test_a_removed_client_stands_on_no_list",
    "eval --every": "test_versions_that_come_too_soon_are_left_out",
    "doctor --role": "test_a_run_of_apex_train_is_checked_without_addresses",
    "doctor --json": "test_before_a_run_all_is_well_and_nobody_is_there_to_compare_with",
    "play --checkpoint": "test_play_writes_a_video_of_the_whole_picture",
    "play --episodes": "test_options_reach_the_games_that_are_shown",
    "play --protocol": "test_options_reach_the_games_that_are_shown",
    "play --seed": "test_options_reach_the_games_that_are_shown",
    "play --video": "test_play_writes_a_video_of_the_whole_picture",
}
TESTS = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]


class Parsed(NamedTuple):
    parser: argparse.ArgumentParser
    config: Config | None  # None: not resolved


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Parsed]:
    """Runs a program up to where its work would begin; without arguments, up to its parser."""
    for name in settings.ADDRESSES:
        monkeypatch.delenv(f"APEX_{name.upper()}", raising=False)
    resolve = program.main

    def parse(name: str, *arguments: str) -> Parsed:
        found: list[Parsed] = []

        def catch(parser: argparse.ArgumentParser, run: object, argv: list[str], *more: Any, **options: Any) -> int:
            def keep(_: argparse.Namespace, resolved: Config) -> int:
                found.append(Parsed(parser, resolved))
                return 0

            if arguments:
                return resolve(parser, keep, [*argv, *REQUIRED.get(name, ())], *more, **options)
            found.append(Parsed(parser, None))
            return 0

        monkeypatch.setattr(program, "main", catch)
        assert cli.PROGRAMS[name](arguments) == 0
        return found[0]

    return parse


def options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    for action in parser._actions:
        if action.option_strings:
            yield action.option_strings[-1], action


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_has_a_test(program: str, parse: Callable[..., Parsed]) -> None:
    for flag, _ in options(parse(program).parser):
        named = ELSEWHERE.get(f"{program} {flag}", ELSEWHERE.get(flag))
        if named is None:
            assert flag in SETTINGS, f"{program} {flag}: give it an entry in SETTINGS or ELSEWHERE"
            continue
        (text,) = (text for text in TESTS if f"def {named}(" in text)
        assert flag in text, f"the file of {named} does not try {flag}"


def test_no_entry_outlives_its_option(parse: Callable[..., Parsed]) -> None:
    flags = {program: {flag for flag, _ in options(parse(program).parser)} for program in PROGRAMS}
    for entry in [*SETTINGS, *ELSEWHERE]:
        program, _, flag = entry.rpartition(" ")
        assert any(flag in flags[each] for each in ([program] if program else PROGRAMS)), entry


def changes(section: settings.Section, default: settings.Section, prefix: str = "") -> dict[str, Any]:
    """What is not as by default, by dotted name."""
    found: dict[str, Any] = {}
    for field in section.__struct_fields__:
        now, before = getattr(section, field), getattr(default, field)
        if isinstance(now, settings.Section):
            found |= changes(now, before, f"{prefix}{field}.")
        elif now != before:
            found[prefix + field] = now
    return found


@pytest.mark.parametrize("program", ["actor", "replay", "learner", "forwarder", "train", "doctor", "top"])
def test_an_option_changes_its_setting_alone(program: str, parse: Callable[..., Parsed]) -> None:
    for flag in dict(options(parse(program).parser)).keys() & SETTINGS.keys():
        typed, name, value = SETTINGS[flag]
        resolved = parse(program, flag, *typed.split()).config
        assert resolved is not None
        changed = changes(resolved, Config())
        assert changed[name] == value, flag
        assert flag == "--config" or changed.keys() == {name}


@pytest.mark.parametrize("program", ["actor", "replay", "learner", "doctor"])
def test_flags_win_over_the_environment_and_set_over_flags(
    program: str, parse: Callable[..., Parsed], monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches(*arguments: str) -> object:
        resolved = parse(program, "--set", "env.noop_max=7", *arguments).config
        assert resolved is not None
        return resolved.addresses.batches

    monkeypatch.setenv("APEX_BATCHES", "tcp://environment:1")
    flag, setting = ("--batches", "tcp://flag:1"), ("--set", "addresses.batches=tcp://set:1")
    assert batches() == "tcp://environment:1"
    assert batches(*flag) == "tcp://flag:1"
    assert batches(*setting, *flag) == "tcp://set:1"


def test_batches_may_have_an_address_for_each_rank(parse: Callable[..., Parsed]) -> None:
    resolved = parse("replay", "--batches", "tcp://host:1,tcp://host:2").config
    assert resolved is not None
    assert resolved.addresses.batches == ("tcp://host:1", "tcp://host:2")


def test_apex_train_chooses_addresses_itself(parse: Callable[..., Parsed], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APEX_BATCHES", "tcp://environment:1")
    resolved = parse("train", "--set", "replay.shards=2").config  # without an address for the second
    assert resolved is not None
    assert resolved.addresses == Config().addresses


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_says_what_an_option_does_and_its_default(program: str, parse: Callable[..., Parsed]) -> None:
    for flag, action in options(parse(program).parser):
        assert action.help, flag
        optional = action.nargs != 0 and not action.required and flag != "--set"
        assert "default" in action.help or not optional, f"{program} {flag}"


def test_units_stand_in_names_and_descriptions() -> None:
    for setting in settings.settings():
        for ending, unit in (("_s", "second"), ("_bytes", "byte"), ("_minutes", "minute")):
            assert not setting.name.endswith(ending) or unit in setting.description.lower(), setting.name


def documented() -> Iterator[tuple[str, str, str, str]]:
    """Program, option, meaning and default of every row of the page's tables of options."""
    for cells in re.findall(r"^\| `(--[\w-]+)[^|]*\| ([^|]*) \| ([^|]*) \|(?: (.*))? \|$", PAGE, re.MULTILINE):
        option, programs, meaning, default = cells
        for named in programs.split(", "):
            for each in ROLES if named == "roles" else (named,):
                yield each, option, meaning, default


def test_the_page_lists_the_options_of_every_program(parse: Callable[..., Parsed]) -> None:
    listed = [(program, option) for program, option, _, _ in documented()]
    everywhere = {"--help", "--version"}
    assert len(listed) == len(set(listed))
    assert set(listed) == {
        (program, flag) for program in PROGRAMS for flag, _ in options(parse(program).parser) if flag not in everywhere
    }


def test_the_page_has_settings_and_defaults_of_the_options_of_apex_train() -> None:
    rows = {option: (meaning, default) for program, option, meaning, default in documented() if program == "train"}
    defaults = {setting.name: setting.default for setting in settings.settings()}
    for flag, name, _ in TRAIN_FLAGS:
        meaning, default = rows[flag]
        assert f"`{name}`" in meaning, flag
        assert re.sub(r",(?=\d{3})", "", default) == ("none" if defaults[name] is None else str(defaults[name])), flag


# Variables that hold a section under another name than the section's.
ALIASES = {"reward": {"terms"}, "learner": {"config"}}


def test_every_setting_is_used() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "apex_zmq").rglob("*.py") if path.name != "config_doc.py")
    for setting in settings.settings():
        *_, section, leaf = setting.name.split(".")
        owners = "|".join({section, *ALIASES.get(section, set())})
        assert re.search(rf"\b_?({owners})\.{leaf}\b(?!\()", sources), f"nothing reads {setting.name}"
