from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from apex_zmq.config import loading, sources
from apex_zmq.config.sources import Value

from .conftest import refusal


def test_each_value_of_a_file_has_its_line_number(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("learner:\n  batch_size: 64\n\n  loss: l2\nenv: {reward: {death: -7},\n  stages: [1-1]}\n")
    assert sources.from_file(path) == [
        Value("learner.batch_size", 64, f"{path} line 2"),
        Value("learner.loss", "l2", f"{path} line 4"),
        Value("env.reward.death", -7, f"{path} line 5"),
        Value("env.stages", ["1-1"], f"{path} line 6"),
    ]


def test_anchors_and_merge_keys_are_resolved(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("run: {seed: &seed 5}\nlearner: &pace {sync_every: 3, <<: {save_every: *seed}}\n")
    values = {value.name: value.value for value in sources.from_file(path)}
    assert values == {"run.seed": 5, "learner.sync_every": 3, "learner.save_every": 5}


@pytest.mark.parametrize("content", ["", "# nothing\n", "null\n", "{}\n"])
def test_an_empty_file_has_no_values(content: str, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text(content)
    assert sources.from_file(tmp_path / "empty.yaml") == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"- a\n- b\n", "must contain sections (run, env, agent, ...), not a list"),
        (b"learner: [", "is not valid YAML"),
        (b"\x80\x02 a pickle", "is not valid YAML"),
        (b"\x00\x01\x02", "is not valid YAML"),
        (b"learner: 5", " line 1: learner is a section; wanted its settings, such as learner.device, got 5"),
        (b"learner:\n  batchsize: 5", " line 2: unknown setting learner.batchsize; did you mean learner.batch_size?"),
    ],
)
def test_error_names_the_bad_file(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    message = refusal(lambda: loading.load(path))
    assert str(path) in message
    assert expected in message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e6", 1_000_000),
        ("1_000_000", 1_000_000),
        ("2.5e3", 2500.0),
        ("1e-5", 1e-5),
        ("010", 10),
        ("-3", -3),
        ("+.5", 0.5),
        (".inf", float("inf")),
        ("1:30", "1:30"),
        ("1-1", "1-1"),
        ("2026-02-30", "2026-02-30"),
        ("0x10", "0x10"),
        ('"7"', "7"),
        ("true", True),
        ("null", None),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, value: object) -> None:
    read = sources.from_set(f"learner.batch_size={text}").value
    assert read == value
    assert type(read) is type(value)


@given(st.integers(-(10**18), 10**18) | st.floats(allow_nan=False))
def test_every_number_that_yaml_writes_is_read_back(number: float) -> None:
    written = yaml.safe_dump(number).removesuffix("...\n")
    assert sources.from_set(f"learner.beta={written}").value == number


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("learner:\n  loss: l2\nrun:\n  seed: 1\nlearner:\n  beta: 1\n", "lines 1 and 5 both give learner; keep one"),
        ("learner:\n  beta: 1\n  loss: l2\n  beta: 0\n", "lines 2 and 4 both give beta; keep one"),
        ("env:\n  reward: {death: 1,\n    death: 2}\n", "lines 2 and 3 both give death; keep one"),
    ],
)
def test_a_key_given_twice_is_refused_with_both_lines(content: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(content)
    assert refusal(lambda: sources.from_file(path)) == f"{path} {expected}"


def test_a_key_given_twice_in_an_override_is_refused() -> None:
    message = refusal(lambda: sources.from_set("env.reward={death: 1, death: 2}"))
    assert message == "--set: env.reward={death: 1, death: 2}: death is given twice; keep one"


def test_a_section_whose_keys_are_all_commented_out_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("learner:\n  # loss: l2\nenv:\n  reward:\nrun:\n  seed: 3\n")
    assert [value.name for value in sources.from_file(path)] == ["run.seed"]


def test_a_missing_file_is_named_with_a_remedy(tmp_path: Path) -> None:
    message = refusal(lambda: loading.load(tmp_path / "none.yaml"))
    assert f"{tmp_path}/none.yaml: No such file" in message
    assert "see configs/ for ready ones" in message
    assert "Is a directory" in refusal(lambda: loading.load(tmp_path))


@pytest.mark.parametrize("text", ["=1", "run.dir", " = 1"])
def test_an_override_without_name_or_value_is_refused(text: str) -> None:
    assert refusal(lambda: sources.from_set(text)).endswith("write section.key=value")


def test_an_override_is_yaml() -> None:
    assert sources.from_set(" env.stages = [1-1, 1-2]") == Value("env.stages", ["1-1", "1-2"], "--set")
    assert sources.from_set("run.max_minutes=null").value is None


def test_flags_are_parsed_as_yaml_and_addresses_literally() -> None:
    assert sources.from_text("replay.capacity", "99_999", "--buffer-size").value == 99_999
    assert sources.from_text("addresses.batches", "ipc:///tmp/a: {b} #c", "x").value == "ipc:///tmp/a: {b} #c"
    assert sources.from_text("addresses.batches", "tcp://a:1,tcp://b:1", "x").value == ["tcp://a:1", "tcp://b:1"]
    assert sources.from_text("addresses.experience", "tcp://a:1", "x").value == ["tcp://a:1"]


def test_addresses_from_the_environment() -> None:
    environ = {
        "APEX_EXPERIENCE": "tcp://a:1,tcp://b:1",
        "APEX_BATCHES": "tcp://c:3",
        "APEX_PARAMETERS": "",
        "APEX_STATUS": "tcp://not:asked",
        "APEX_OTHER": "nonsense",
    }
    names = ["addresses.experience", "addresses.batches", "addresses.parameters"]
    assert sources.from_environment(names, environ) == [
        Value("addresses.experience", ["tcp://a:1", "tcp://b:1"], "APEX_EXPERIENCE"),
        Value("addresses.batches", "tcp://c:3", "APEX_BATCHES"),
    ]
