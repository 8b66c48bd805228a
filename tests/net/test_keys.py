"""apex-keys: what it writes, with which modes, what it refuses; and how keys are read."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest
import zmq
import zmq.auth

from apex_zmq.cli import launch, tools
from apex_zmq.config.settings import Addresses
from apex_zmq.errors import ConfigError
from apex_zmq.net import keys
from apex_zmq.net.keys import OPENS, SERVES, client_keys, read_allowed, server_keys

from ..conftest import ROOT


def of(directory: Path) -> Addresses:
    return Addresses(keys=str(directory))


def names(path: Path) -> list[str]:
    return [line.split()[0] for line in path.read_text().splitlines()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Keys of everybody."""
    path = tmp_path / "keys"
    for arguments in (
        [],
        ["alice", "--role", "actor"],
        ["judge", "--role", "evaluator"],
        ["box", "--role", "forwarder"],
    ):
        assert tools.keys([str(path), *arguments]) == 0
    assert tools.keys([str(path), "bob", "--role", "actor", "--behind", "box"]) == 0
    return path


def test_secrets_are_owner_only_and_allow_lists_match_roles(root: Path) -> None:
    for path in [root, *root.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o644 if path.name == "identity.key" else 0o600), path
    lists = {str(path.relative_to(root)): names(path) for path in root.glob("*/allowed/*")}
    assert lists == {
        "replay/allowed/experience": ["alice", "bob"],
        "replay/allowed/priorities": ["learner"],
        "learner/allowed/batches": ["replay"],
        "learner/allowed/parameters": ["alice", "judge", "box"],
        "learner/allowed/status": ["replay", "alice", "box", "bob"],
        "box/allowed/parameters": ["bob"],
    }


def test_key_directory_has_own_secret_and_server_public_keys(root: Path) -> None:
    secrets = {}
    for path in root.glob("*/identity.key_secret"):
        _, secrets[path.parent.name] = zmq.auth.load_certificate(path)
    assert len(set(secrets.values())) == 6
    for path in root.rglob("*"):
        for name, secret in secrets.items():
            assert secret is not None
            if path.is_file() and secret in path.read_bytes():
                assert path == root / name / "identity.key_secret"
    public = {name: zmq.curve_public(secret) for name, secret in secrets.items() if secret}
    roles = {"alice": "actor", "bob": "actor", "judge": "evaluator", "box": "forwarder", "replay": "replay"}
    for name, role in (roles | {"learner": "learner"}).items():
        for channel in OPENS[role]:
            found = client_keys(of(root / name), channel)
            assert found is not None
            usual = next(server for server in keys.SERVERS if channel in SERVES[server])
            server = "box" if (name, channel) == ("bob", "parameters") else usual
            assert (found.public, found.secret, found.server) == (public[name], secrets[name], public[server])


def test_removed_client_is_on_no_allow_list(root: Path) -> None:
    assert tools.keys([str(root), "bob", "--remove"]) == 0
    assert not (root / "bob").exists()
    assert all("bob" not in names(path) for path in root.glob("*/allowed/*"))
    assert names(root / "learner" / "allowed" / "status") == ["replay", "alice", "box"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "replay exists already"),
        (["alice", "--role", "actor"], "alice exists already"),
        (["carol"], "--role actor, evaluator or forwarder"),
        (["../carol", "--role", "actor"], "at most 64 letters"),
        (["learner", "--role", "actor"], "learner exists already"),
        (["carol", "--role", "actor", "--behind", "alice"], "no keys of a forwarder alice"),
        (["carol", "--role", "actor", "--behind", "learner"], "no keys of a forwarder learner"),
        (["carol", "--remove"], "no client carol"),
        (["replay", "--remove"], "no client replay"),
        (["../keys", "--remove"], "no client ../keys"),
        (["alice", "--remove", "--role", "actor"], "--remove takes a NAME and no other option"),
        (["--remove"], "give its NAME"),
    ],
)
def test_bad_input_gives_a_one_line_error_and_no_changes(
    root: Path, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert tools.keys([str(root), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_client_needs_server_keys_and_a_writable_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tools.keys([str(tmp_path / "none"), "alice", "--role", "actor"]) == 2
    assert "make them first with apex-keys" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").touch()
    assert tools.keys([str(tmp_path / "file")]) == 2
    assert "cannot write keys" in capsys.readouterr().err


def test_unusable_key_directories_are_refused(root: Path) -> None:
    alice = root / "alice"
    with pytest.raises(ConfigError, match=r"allowed/experience is missing: .* keys of a replay"):
        server_keys(of(alice), "experience")
    with pytest.raises(ConfigError, match=r"servers must hold a line `batches"):
        client_keys(of(alice), "batches")
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere.*apex-keys"):
        client_keys(of(root / "nowhere"), "status")
    secret = alice / "identity.key_secret"
    secret.chmod(0o640)
    with pytest.raises(ConfigError, match=r"can be read by other users .*chmod 600"):
        client_keys(of(alice), "status")
    secret.chmod(0o600)
    for text in ("", "garbage", (root / "judge" / "identity.key").read_text()):
        secret.write_text(text)
        with pytest.raises(ConfigError, match="does not hold a key pair"):
            client_keys(of(alice), "status")


def test_secret_key_is_not_in_the_repr(root: Path) -> None:
    shown = f"{client_keys(of(root / 'alice'), 'status')} {server_keys(of(root / 'replay'), 'experience')}"
    for name in ("alice", "replay"):
        _, secret = zmq.auth.load_certificate(root / name / "identity.key_secret")
        assert secret is not None
        assert secret.decode() not in shown


def test_allow_list_reader_reports_bad_lines(root: Path) -> None:
    path = root / "replay" / "allowed" / "experience"
    alice, bob = path.read_text().splitlines()
    path.write_text(f"# hosts\n\n{alice}\n#{bob}\nalice  {bob.split()[1]} \nbob\nbob {'x' * 39}\nno key at all\n")
    found, broken = read_allowed(path)
    assert found == {alice.split()[1]: "alice", bob.split()[1]: "alice"}
    assert broken == [6, 7, 8]
    assert read_allowed(path.with_name("nothing")) == ({}, [])


def test_no_keys_are_read_without_a_key_directory() -> None:
    assert client_keys(Addresses(), "status") is None
    assert server_keys(Addresses(), "status") is None


def test_libzmq_without_curve_is_reported(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "has", lambda capability: False)
    with pytest.raises(ConfigError, match="without CURVE; install the pyzmq wheel"):
        client_keys(of(root / "alice"), "status")


def test_a_run_on_one_machine_needs_no_keys() -> None:
    assert launch.local_addresses(2, None)["addresses.keys"] is None
    assert "APEX_KEYS" in launch.DROPPED_VARIABLES


def test_apex_keys_program_writes_keys(tmp_path: Path) -> None:
    made = subprocess.run([ROOT / "bin" / "apex-keys", tmp_path / "keys"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "keys" / "learner" / "identity.key_secret").exists()
