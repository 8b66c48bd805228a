"""Every link of the table, bound and connected over real sockets, with keys and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq

from apex_zmq.config import loading
from apex_zmq.config.settings import Config, addresses_of
from apex_zmq.errors import ConfigError
from apex_zmq.net.keys import OPENS, SERVES, make_client, make_servers
from apex_zmq.net.links import LINKS, ROLES, Link
from apex_zmq.net.sockets import Inbox, Links, Outbox, max_message_bytes
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import Kind

from ..channels import HELLO, PATIENCE_S, await_ready, links_of

Opened = Callable[[Any], Any]
COMMON: dict[int, int] = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 30,
    zmq.TCP_KEEPALIVE_INTVL: 10,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.TCP_MAXRT: 30_000,
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 5_000,
    zmq.LINGER: 0,
    zmq.HEARTBEAT_IVL: 0,
}
CREDITS = Config().replay.credits
PUSH_LINKS = [link for link in LINKS.values() if link.pattern == "push"]


@pytest.fixture(params=["without-keys", "with-keys"])
def holders(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Path | None]:
    """The keys of each role; None: the run has none."""
    if request.param == "without-keys":
        return dict.fromkeys(ROLES)
    root = tmp_path / "keys"
    make_servers(root)
    for role in ("actor", "evaluator", "forwarder"):
        make_client(root, role, role)
    return {role: root / role for role in ROLES}


def given(link: Link, address: str, keys: Path | None) -> Links:
    arguments: dict[str, Any] = {link.name: address, "keys": keys}
    return links_of(**arguments)


def assert_options(channel: zmq.Socket[bytes], expected: dict[int, int]) -> None:
    assert {option: channel.getsockopt(option) for option in expected} == expected


def connect(link: Link, opener: Links) -> Inbox[Any] | Outbox:
    if link.pattern == "publish":
        return opener.subscribe(link.name, dict.fromkeys(link.kinds, list))
    return opener.connect(link.name)


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
def test_sockets_have_the_options_of_the_link_table(
    link: Link, holders: dict[str, Path | None], address: str, opened: Opened
) -> None:
    server, client = holders[link.binds[0]], holders[link.connects[0]]
    queue = link.connected_queue if isinstance(link.connected_queue, int) else CREDITS
    kernel_bytes = link.kernel_bytes or 0
    bound_links = given(link, address, server)
    connected_links = given(link, address, client)
    connected = opened(connect(link, connected_links)).socket
    if link.pattern == "publish":
        bound = opened(bound_links.publish(link.name)).socket
        assert (bound.type, connected.type) == (zmq.XPUB, zmq.SUB)
        assert_options(bound, COMMON | {zmq.SNDHWM: link.bound_queue, zmq.MAXMSGSIZE: 4096})
        received = {zmq.RCVHWM: queue, zmq.MAXMSGSIZE: max_message_bytes(link), zmq.CONFLATE: 0}
        assert_options(connected, COMMON | received)
    else:
        bound = opened(bound_links.bind(link.name, dict.fromkeys(link.kinds, list))).socket
        assert (bound.type, connected.type) == (zmq.PULL, zmq.PUSH)
        received = {zmq.RCVHWM: link.bound_queue, zmq.MAXMSGSIZE: max_message_bytes(link)}
        assert_options(bound, COMMON | received | ({zmq.RCVBUF: kernel_bytes} if kernel_bytes else {}))
        sent = {zmq.SNDHWM: queue, zmq.IMMEDIATE: 1, zmq.TCP_MAXRT: 0 if link.patient else 30_000}
        assert_options(connected, COMMON | sent | ({zmq.SNDBUF: kernel_bytes} if kernel_bytes else {}))
    for end, is_server in ((bound, 1), (connected, 0)):
        assert_options(end, {zmq.CURVE_SERVER: is_server, zmq.HANDSHAKE_IVL: 5_000} if server else {})
        assert end.getsockopt(zmq.MECHANISM) == (zmq.CURVE if server else zmq.NULL)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "link", [link for link in LINKS.values() if link.pattern == "push"], ids=lambda link: link.name
)
def test_each_role_that_connects_delivers(
    link: Link, role: str, holders: dict[str, Path | None], address: str, opened: Opened
) -> None:
    keys = holders[role]
    opener = given(link, address, keys)
    if keys is not None and role not in link.connects:
        with pytest.raises(ConfigError, match=f"must hold a line `{link.name} PUBLIC-KEY`"):
            opener.connect(link.name)
        return
    server = given(link, address, holders[link.binds[0]])
    inbox = opened(server.bind(link.name, {kind: lambda parts: bytes(parts[0]) for kind in link.kinds}))
    outbox = opened(opener.connect(link.name))
    await_ready(outbox)
    for kind in link.kinds:
        message = bytes(encode(Kind.HELLO, HELLO)[0])
        message = bytes([kind]) + message[1:]
        assert outbox.send([message])
        assert inbox.receive(PATIENCE_S) == message


def test_channels_of_each_role_match_the_link_table() -> None:
    assert OPENS["actor"] == ("experience", "parameters", "status")
    assert SERVES["replay"] == ("experience", "priorities")
    assert SERVES["forwarder"] == ("parameters",)
    for link in LINKS.values():
        assert {role for role in ROLES if link.name in OPENS[role]} == {*link.connects}
        assert {role for role in ROLES if link.name in SERVES[role]} == {*link.binds}


def test_every_link_has_a_setting_and_every_kind_a_link() -> None:
    config = loading.replace(
        Config(),
        {
            "addresses.experience": ["ipc:///a", "ipc:///b"],
            "addresses.priorities": ["ipc:///c", "ipc:///d"],
            "addresses.batches": ["ipc:///e", "ipc:///f", "ipc:///g"],
            "replay.shards": 2,
        },
    )
    counts = {name: len(addresses_of(config.addresses, name)) for name in LINKS}
    numbers = {"shard": config.replay.shards, "rank": len(addresses_of(config.addresses, "batches")), None: 1}
    assert counts == {name: numbers[link.one_per] for name, link in LINKS.items()}
    assert {kind for link in LINKS.values() for kind in link.kinds} == {*Kind}
    links = Links(config)
    assert [links.address("experience", shard) for shard in range(2)] == ["ipc:///a", "ipc:///b"]


def test_binding_requires_keys_of_a_role_that_binds(tmp_path: Path, address: str) -> None:
    root = tmp_path / "keys"
    make_servers(root)
    with pytest.raises(ConfigError, match=r"allowed/experience is missing: .* keys of a replay"):
        links_of(experience=address, keys=root / "learner").bind("experience", {})
