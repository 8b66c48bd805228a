"""docs/PROTOCOL.md is the authority: the code keeps to it, and messages can be read by it alone."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import typing
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import lz4.block
import msgpack
import msgspec
import numpy as np
import pytest
from msgspec import inspect
from numpy.lib.stride_tricks import sliding_window_view

from apex_zmq.agent.nstep import n_step_transitions
from apex_zmq.config import loading, settings
from apex_zmq.envs.emulators import ROM_SHA256
from apex_zmq.envs.games import MARIO
from apex_zmq.envs.mario import RULES_VERSION
from apex_zmq.net.links import LINKS
from apex_zmq.roles.actor.segments import SegmentBuilder
from apex_zmq.signature import experience_signature, network_signature
from apex_zmq.types import TRANSITION, Batch, FrameSpec, PriorityUpdate, Shipment
from apex_zmq.wire import experience, messages
from apex_zmq.wire.body import Body, encode
from apex_zmq.wire.codec import LIMITS, PROTOCOL_VERSION, Kind, version_text
from apex_zmq.wire.experience import decode_batch, decode_segment, encode_batch, encode_segment
from apex_zmq.wire.messages import Heartbeat, Parameters, decode_heartbeat

TEXT = (Path(__file__).parents[2] / "docs" / "PROTOCOL.md").read_text()
STRUCTS: dict[str, type[Body]] = {
    "SEGMENT (1)": experience.SegmentBody,
    "BATCH (2)": experience.BatchBody,
    "PRIORITIES (3)": experience.PrioritiesBody,
    "HELLO (4)": messages.Hello,
    "PARAMETERS (5)": messages.Parameters,
    "HEARTBEAT (6)": messages.Heartbeat,
    "STATUS (7)": messages.Status,
    "RELAYED_STATUS (8)": messages.Status,
    "BYE (9)": messages.Bye,
    "Frame": experience.FrameBody,
    "Tensor": messages.Tensor,
    "Episode": messages.Episode,
    "StageArchive": messages.StageArchive,
    "Refusal": messages.Refusal,
}
HEADINGS = {struct: heading for heading, struct in STRUCTS.items()}
COLUMN = re.compile(r"([uf])(8|16|32|64)\[([A-Z](?:, [A-Z])?)\]")
TABLE = re.compile(r"Transition\[[TB]\]")

Row = dict[str, str]


def section(heading: str) -> str:
    """The text below a heading, up to the next one."""
    match = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert match, f"PROTOCOL.md has no section {heading}"
    return match[1]


def tables(heading: str) -> list[list[Row]]:
    """The tables of a section: rows by column name."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", section(heading), re.MULTILINE):
        names, _, *rows = [
            [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in block.splitlines()
        ]
        found.append([dict(zip(names, row, strict=True)) for row in rows])
    return found


def code(heading: str, language: str) -> str:
    match = re.search(rf"```{language}\n(.*?)\n```", section(heading), re.DOTALL)
    assert match
    return match[1]


@cache
def fields(heading: str) -> dict[str, Row]:
    return {row["field"]: row for row in tables(heading)[0]}


# The tables say what the code enforces.


def number(value: Any) -> str:
    return {2**63 - 1: "2^63-1", 2**30: "2^30"}.get(value, str(value))


def described(kind: inspect.Type) -> tuple[str, str]:
    """The `type` and `values` that the document gives for what the decoder accepts."""
    match kind:
        case inspect.IntType(ge=low, le=high):
            return "int", f"{number(low)} to {number(high)}"
        case inspect.FloatType(ge=None, gt=None):
            return "float", "finite"
        case inspect.FloatType(gt=0):
            return "float", "> 0, finite"
        case inspect.FloatType(ge=low, le=high):
            return "float", f"{low} to {high}"
        case inspect.BoolType():
            return "bool", ""
        case inspect.LiteralType(values=choices):
            *most, last = [f'"{choice}"' for choice in sorted(map(str, choices))]
            return "str", f"{', '.join(most)} or {last}" if most else last
        case inspect.StrType(min_length=low, max_length=high):
            return "str", f"{span(low, high)} characters"
        case inspect.StructType(cls=cls):
            return HEADINGS[typing.cast("type[Body]", cls)], ""
        case inspect.VarTupleType(item_type=item, min_length=low, max_length=high):
            name, each = described(item)
            return f"list of {name}", f"{span(low, high)} entries" + (f", each {each}" if each else "")
        case inspect.DictType(key_type=key, value_type=value, max_length=high):
            names, values = described(key), described(value)
            return f"map of {names[0]} to {values[0]}", f"at most {high} entries; keys {names[1]}"
    raise AssertionError(f"a type the document has no word for: {kind}")


def span(low: int | None, high: int | None) -> str:
    return f"{low} to {high}" if low else f"at most {high}"


def test_protocol_version() -> None:
    assert re.findall(r"^Protocol version: \*\*([\d.]+)\*\*$", TEXT, re.MULTILINE) == [version_text()]


def test_every_link_is_in_the_table() -> None:
    (rows,) = tables("1. Links")
    assert [row["link"] for row in rows] == list(LINKS)
    for row in rows:
        link = LINKS[row["link"]]
        assert row["pattern"] == {"push": "PUSH to PULL", "publish": "XPUB to SUB"}[link.pattern]
        assert (row["binds"], row["connects"]) == (", ".join(link.binds), ", ".join(link.connects))
        assert row["queue of binding side"] == str(link.bound_queue)
        assert row["queue of connecting side"].strip("`") == str(link.connected_queue)
        assert row["addresses"] == (f"one per {link.one_per}" if link.one_per else "one")
        assert row["kinds"] == ", ".join(kind.name for kind in link.kinds)
        assert row["kernel buffer"] == ("" if link.kernel_bytes is None else str(link.kernel_bytes))
        assert row["linger"] == str(round(1000 * link.linger_s))


def test_every_kind_has_its_number_limits_and_section() -> None:
    documented = {
        (row["kind"], int(row["number"])): (int(row["body before compression"]), int(row["buffer part"]))
        for row in tables("Limits")[0]
    }
    assert documented == {(kind.name, kind.value): LIMITS[kind] for kind in Kind}
    headings = re.findall(r"^### (\w+ \(\d+\))$", TEXT, re.MULTILINE)
    assert headings == [f"{kind.name} ({kind.value})" for kind in Kind]


@pytest.mark.parametrize("heading", STRUCTS)
def test_every_field_is_documented_with_its_type_and_range(heading: str) -> None:
    info = inspect.type_info(STRUCTS[heading])
    assert isinstance(info, inspect.StructType)
    assert list(fields(heading)) == [field.encode_name for field in info.fields]
    for field in info.fields:
        row = fields(heading)[field.encode_name]
        if isinstance(field.type, inspect.BytesType):
            assert row["type"] == "bytes" or COLUMN.fullmatch(row["type"]) or TABLE.fullmatch(row["type"]), row
            continue
        kind, values = described(field.type)
        if not field.required:
            default = json.dumps(field.default if field.default is not msgspec.NODEFAULT else field.default_factory())
            values = f"{values}; default {default}" if values else f"default {default}"
        assert (row["type"], row["values"]) == (kind, values), field.encode_name


# A decoder written from the document alone: plain libraries, and the types in its tables.


def read_by_document(parts: list[bytes]) -> tuple[str, dict[str, Any]]:
    kind, major, flags, minor, raw_size = struct.unpack_from("<BBBBI", parts[0])
    assert (major, minor) == PROTOCOL_VERSION
    body = parts[0][8:]
    if flags & 1:
        body = lz4.block.decompress(body, uncompressed_size=raw_size)
    assert len(body) == raw_size
    (row,) = [row for row in tables("Limits")[0] if int(row["number"]) == kind]
    assert len(parts) - 1 == int(row["buffer parts"])
    return row["kind"], read_fields(f"{row['kind']} ({kind})", msgpack.unpackb(body))


def read_fields(heading: str, body: dict[str, Any]) -> dict[str, Any]:
    defaults = {name: row["values"].partition("default ")[2] for name, row in fields(heading).items()}
    missing = {name: json.loads(default) for name, default in defaults.items() if default and name not in body}
    body = missing | body
    assert body.keys() == fields(heading).keys()
    letters = {"W": body.get("window")}
    return {name: read_value(row["type"], body[name], letters) for name, row in fields(heading).items()}


def read_value(kind: str, value: Any, letters: dict[str, Any]) -> Any:
    if column := COLUMN.fullmatch(kind):
        array = np.frombuffer(value, f"<{column[1]}{int(column[2]) // 8}")
        return array.reshape([letters.get(letter, -1) for letter in column[3].split(", ")])
    if TABLE.fullmatch(kind):
        return read_table(value)
    if kind in STRUCTS:
        return read_fields(kind, value)
    if kind.startswith("list of "):
        return [read_value(kind.removeprefix("list of "), each, letters) for each in value]
    plain = {"int": int, "str": str, "float": float, "bool": bool, "bytes": bytes, "map of str to float": dict}
    assert isinstance(value, plain[kind])
    return value


def documented_row() -> np.dtype[np.void]:
    (rows,) = tables("Transition")
    dtypes = [f"<{row['type'][0]}{int(row['type'][1:]) // 8}" for row in rows]
    offsets = [int(row["offset"]) for row in rows]
    names = [row["field"] for row in rows]
    return np.dtype({"names": names, "formats": dtypes, "offsets": offsets, "itemsize": 21})


def read_table(value: bytes) -> np.ndarray[Any, np.dtype[np.void]]:
    dtype = documented_row()
    count, rest = divmod(len(value), dtype.itemsize)
    assert not rest
    table = np.zeros(count, TRANSITION)
    for name, (kind, offset, *_) in (dtype.fields or {}).items():
        table[name] = np.frombuffer(value, kind, count, offset * count)
    return table


def test_a_transition_has_the_documented_fields_at_their_offsets() -> None:
    assert documented_row() == TRANSITION
    assert f"a record of {TRANSITION.itemsize} bytes without padding" in section("Transition")


def assert_fields(found: dict[str, Any], expected: Any, names: set[str]) -> None:
    for name in names:
        value = getattr(expected, name)
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(found[name], value, name)
            assert found[name].dtype == value.dtype
        else:
            assert found[name] == value, name


def frame_of(spec: FrameSpec) -> dict[str, Any]:
    return {"shape": list(spec.shape), "dtype": spec.dtype, "stack": spec.stack, "codec": spec.codec}


@pytest.mark.parametrize("codec", ["lz4", "raw"])
def test_segments_decode_by_the_documented_layout(
    codec: str, shipments: dict[str, Shipment], valid: dict[str, list[bytes]], signature: str
) -> None:
    parts, shipment = valid["SEGMENT" if codec == "lz4" else "SEGMENT/raw"], shipments[codec]
    segment = shipment.segment
    kind, body = read_by_document(parts)
    assert (kind, body["signature"]) == ("SEGMENT", signature)
    assert body["frame"] == frame_of(segment.frame)
    sender = {"actor", "incarnation", "sequence"}
    assert_fields(body, shipment, sender)
    assert_fields(body, segment, body.keys() - sender - {"signature", "frame"})
    rows = body["transitions"]
    ends = np.cumsum(body["frame_sizes"], dtype=int)
    encoded = [
        parts[1][end - size : end] for size, end in zip(body["frame_sizes"].tolist(), ends.tolist(), strict=True)
    ]
    assert ends[-1] == len(parts[1])
    decoded = [lz4.block.decompress(each, uncompressed_size=120) if codec == "lz4" else each for each in encoded]
    # Reset frames stand `stack` times, the final observation once: 9, 1 and 6 steps.
    stack = segment.frame.stack
    starts = np.cumsum([0, stack + 9, stack + 1])
    assert len(decoded) == 3 * stack + 16
    for start, length in zip(starts.tolist(), (9, 1, 6), strict=True):
        assert len(set(decoded[start : start + stack])) == 1
        assert len(set(decoded[start + stack - 1 : start + stack + length])) == length + 1
    assert rows["first"].tolist() == [
        start + t for start, length in zip(starts, (9, 1, 6), strict=True) for t in range(length)
    ]
    assert rows["steps"].tolist() == [min(3, length - t) for length in (9, 1, 6) for t in range(length)]
    frame_crcs = [zlib.crc32(each).to_bytes(4, "little") for each in encoded]
    assert rows["window_crc"].tolist() == [
        zlib.crc32(b"".join(frame_crcs[first : first + steps + stack]))
        for first, steps in zip(rows["first"].tolist(), rows["steps"].tolist(), strict=True)
    ]
    assert (rows["discount"] == 0).tolist() == [False] * 6 + [True] * 4 + [False] * 6


@pytest.mark.parametrize("codec", ["lz4", "raw"])
def test_batches_decode_by_the_documented_layout(
    codec: str, batches: dict[str, Batch], shipments: dict[str, Shipment], valid: dict[str, list[bytes]]
) -> None:
    parts, batch = valid["BATCH" if codec == "lz4" else "BATCH/raw"], batches[codec]
    sample = batch.sample
    kind, body = read_by_document(parts)
    assert (kind, body["window"]) == ("BATCH", sample.frame.stack + 3)
    assert body["frame"] == frame_of(sample.frame)
    dealt = {"learner_incarnation", "rank", "shard", "shard_incarnation", "number"}
    assert_fields(body, batch, dealt)
    assert_fields(body, sample, body.keys() - dealt - {"window", "frame"})
    assert body["frame_sizes"].sum() == len(parts[1])
    np.testing.assert_array_equal(
        (body["frame_sizes"] > 0).sum(axis=1), sample.frame.stack + body["transitions"]["steps"]
    )
    # The shard holds one segment from key 0 on: the first window is where its transition says.
    segment, row = shipments[codec].segment, int(body["keys"][0])
    begin = int(segment.frame_sizes[: segment.transitions["first"][row]].sum())
    size = int(body["frame_sizes"][0].sum())
    assert parts[1][:size] == bytes(segment.frames)[begin : begin + size]


def test_priorities_decode_by_the_documented_layout(update: PriorityUpdate, valid: dict[str, list[bytes]]) -> None:
    kind, body = read_by_document(valid["PRIORITIES"])
    assert kind == "PRIORITIES"
    assert body["retired"].tolist() == update.retired.tolist()
    assert_fields(body, update, body.keys() - {"retired"})


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.HEARTBEAT, Kind.STATUS, Kind.RELAYED_STATUS, Kind.BYE])
def test_structs_decode_by_the_documented_layout(
    kind: Kind, bodies: dict[Kind, Body], valid: dict[str, list[bytes]]
) -> None:
    assert read_by_document(valid[kind.name]) == (kind.name, json.loads(msgspec.json.encode(bodies[kind])))


def test_parameters_decode_by_the_documented_layout(bodies: dict[Kind, Body], valid: dict[str, list[bytes]]) -> None:
    kind, body = read_by_document(valid["PARAMETERS"])
    expected = bodies[Kind.PARAMETERS]
    assert isinstance(expected, Parameters)
    assert kind == "PARAMETERS"
    assert_fields(body, expected, body.keys() - {"tensors"})
    for found, tensor in zip(body["tensors"], expected.tensors, strict=True):
        assert found == msgspec.structs.asdict(tensor) | {"shape": list(tensor.shape)}
        assert len(found["data"]) == 4 * math.prod(found["shape"])


def test_heartbeat_hex_example_matches_the_codec() -> None:
    message = bytes.fromhex(code("Limits", "hex"))
    heartbeat = Heartbeat(run="a1b2", learner_incarnation=7, version=3, update=150)
    assert decode_heartbeat([message]) == heartbeat
    assert encode(Kind.HEARTBEAT, heartbeat) == [message]


def parts_in_hex(heading: str) -> list[bytes]:
    """Header part and buffer part of a section's example, parted by an empty line."""
    return [bytes.fromhex(part) for part in code(heading, "hex").split("\n\n")]


EXAMPLE = FrameSpec((1,), "float32", 1)


def example_shipment() -> Shipment:
    """The episode of section 6 as an actor ships it."""
    (rows,) = tables("6. Columns")
    builder = SegmentBuilder(EXAMPLE, n_step=2, gamma=0.5, length=3)
    builder.reset(np.zeros((1, 1), np.float32))
    for t, row in enumerate(rows):
        q_taken, reward = float(row["Q(o[t], action[t])"]), float(row["r"])
        builder.step((1, 0, 1)[t], q_taken, np.array([t + 1], np.float32), reward, t == 2, False)
        builder.bootstrap(float(row["max_a Q(o[t+1], a)"]))
    segment = builder.take()
    assert segment is not None
    return Shipment("a", 7, 0, segment)


def test_segment_hex_example_matches_the_codec() -> None:
    message, shipment = parts_in_hex("SEGMENT (1)"), example_shipment()
    assert encode_segment(shipment, "0123456789abcdef") == message
    decoded = decode_segment(message, "0123456789abcdef", n_step=2)
    assert decoded.segment.transitions.tolist() == shipment.segment.transitions.tolist()
    assert np.frombuffer(decoded.segment.frames, "<f4").tolist() == [0, 1, 2, 3]


def test_batch_hex_example_matches_the_codec() -> None:
    message, shipment = parts_in_hex("BATCH (2)"), example_shipment()
    batch = decode_batch(message, EXAMPLE, n_step=2)
    assert (batch.learner_incarnation, batch.rank, batch.shard, batch.shard_incarnation, batch.number) == (
        7,
        0,
        0,
        9,
        0,
    )
    sample = batch.sample
    assert sample.keys.tolist() == [0, 2]
    assert sample.transitions.tolist() == shipment.segment.transitions[[0, 2]].tolist()
    assert sample.priority.tolist() == [1.5, 4.5]
    assert np.frombuffer(sample.frames, "<f4").tolist() == [0, 1, 2, 2, 3]
    assert [bytes(part) for part in encode_batch(batch)] == message


# Examples are recomputed.


def test_the_columns_example() -> None:
    (rows,) = tables("6. Columns")
    column = {name: np.array([float(row[name]) for row in rows], np.float32) for name in rows[0]}
    count = len(rows)
    computed = n_step_transitions(
        reward=column["r"],
        terminated=np.arange(count) == count - 1,
        truncated=np.zeros(count, bool),
        q_taken=column["Q(o[t], action[t])"],
        next_value=column["max_a Q(o[t+1], a)"],
        n=2,
        gamma=0.5,
    )
    for name in ("steps", "reward", "discount", "td_error"):
        np.testing.assert_array_equal(computed[name], column[name], name)


def test_the_experience_signature_example() -> None:
    text = code("Experience signature", "json")
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert f"has the experience signature `{digest}`" in section("Experience signature")
    meaning = json.loads(text)
    assert json.dumps(meaning, sort_keys=True, separators=(",", ":")) == text
    assert (meaning["rom"], meaning["rules"]) == (ROM_SHA256[MARIO], RULES_VERSION)
    agent = {"n_step": meaning["n_step"], "gamma": meaning["gamma"]}
    for left_out in ({}, {"emulator": "nes-py", "stages": ["8-4"]}):
        config = loading.from_tree({"env": meaning["env"] | left_out, "agent": agent}, "PROTOCOL.md")
        assert experience_signature(config) == digest
    whole = loading.from_tree({"env": meaning["env"] | {"stages": "all"}, "agent": agent}, "PROTOCOL.md")
    meaning["env"]["stages"] = "all"
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
    assert experience_signature(whole) == hashlib.sha256(text.encode()).hexdigest()[:16]
    other = loading.from_tree({"env": meaning["env"] | {"frame_skip": 3}, "agent": agent}, "PROTOCOL.md")
    assert experience_signature(other) != digest


def test_the_keys_of_the_experience_signature() -> None:
    keys, env = tables("Experience signature")
    meaning = json.loads(code("Experience signature", "json"))
    assert {row["key"] for row in keys} == meaning.keys()
    assert {row["env key"] for row in env} == meaning["env"].keys()
    assert meaning["env"].keys() == settings.to_tree(settings.Env()).keys() - {"emulator", "stages"}


def test_the_experience_signature_of_another_environment_has_no_rules() -> None:
    config = loading.from_tree({"env": {"id": "Träger-v1"}}, "test")
    env = settings.to_tree(config.env)
    del env["emulator"], env["stages"]
    text = json.dumps({"env": env, "gamma": 0.99, "n_step": 3}, sort_keys=True, separators=(",", ":"))
    assert "Tr\\u00e4ger" in text
    assert experience_signature(config) == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_the_network_signature_example() -> None:
    from apex_zmq.agent.networks import make_network, to_arrays

    (rows,) = tables("Network signature")
    listed = [[row["name"], json.loads(row["shape"]), "float32"] for row in rows]
    text = json.dumps(listed, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    prose = section("Network signature")
    assert f"has the network signature `{digest}`" in prose
    beginning = re.search(r"text begins `(.*?)`", prose)
    assert beginning
    assert text.startswith(beginning[1])
    arrays = to_arrays(make_network(settings.Agent("small"), FrameSpec((84, 84), "uint8", 4), 7))
    assert [[name, list(array.shape), str(array.dtype)] for name, array in arrays.items()] == listed
    assert network_signature(arrays) == digest


@pytest.mark.parametrize("name", ["small", "nature", "mlp"])
@pytest.mark.parametrize(("dueling", "layer_norm"), [(True, False), (True, True), (False, False)])
def test_networks_compute_the_documented_function(name: Any, dueling: bool, layer_norm: bool) -> None:
    import torch

    from apex_zmq.agent.networks import load_arrays, make_network, to_arrays

    (rows,) = tables("9. Networks")
    (row,) = [row for row in rows if row["network"] == name]
    width = int(row["hidden width H"])
    frame = FrameSpec((84, 84), "uint8", 2) if name != "mlp" else FrameSpec((5,), "float32", 2)
    network = make_network(settings.Agent(name, dueling, layer_norm), frame, 3, seed=0)
    rng = np.random.default_rng(0)
    weights = {key: rng.normal(array, 0.01) for key, array in to_arrays(network).items()}
    load_arrays(network, {key: array.astype(np.float32) for key, array in weights.items()})

    def normed(outputs: Any, norm: str) -> Any:
        outputs = (outputs - outputs.mean()) / np.sqrt(outputs.var() + 0.00001)
        return outputs * weights[f"{norm}.weight"] + weights[f"{norm}.bias"]

    if name == "mlp":
        observation: Any = rng.normal(size=(2, 5)).astype(np.float32)
        hidden = observation.ravel()
        for layer, norm in re.findall(r"`(layers\.\d)`: \d+[^`]*`(layers\.\d)`: layer norm", row["torso"]):
            hidden = weights[f"torso.{layer}.weight"] @ hidden + weights[f"torso.{layer}.bias"]
            hidden = np.maximum(normed(hidden, f"torso.{norm}"), 0)
    else:
        observation = rng.integers(0, 256, (2, 84, 84)).astype(np.uint8)
        hidden = observation / 255
        for layer, outputs, size, stride in re.findall(r"`([\w.]+)`: (\d+) of (\d+)x\d+, stride (\d+)", row["torso"]):
            weight = weights[f"torso.{layer}.weight"]
            assert weight.shape == (int(outputs), len(hidden), int(size), int(size))
            windows = sliding_window_view(sliding_window_view(hidden, int(size), axis=1), int(size), axis=2)
            windows = windows[:, :: int(stride), :: int(stride)]
            total = np.einsum("ihwrc,oirc->ohw", windows, weight, optimize=True)
            hidden = total + weights[f"torso.{layer}.bias"][:, None, None]
            if layer_norm:
                hidden = normed(hidden, f"torso.{layer.replace('convolutions', 'norms')}")
            hidden = np.maximum(hidden, 0)
        hidden = hidden.ravel()
    hidden = weights["head.hidden.weight"] @ hidden + weights["head.hidden.bias"]
    hidden = np.maximum(normed(hidden, "head.norm") if layer_norm else hidden, 0)
    assert len(hidden) == 2 * width
    if dueling:
        value = weights["head.value.weight"] @ hidden[:width] + weights["head.value.bias"]
        advantage = weights["head.advantage.weight"] @ hidden[width:] + weights["head.advantage.bias"]
        expected = value + advantage - advantage.mean()
    else:
        expected = weights["head.advantage.weight"] @ hidden + weights["head.advantage.bias"]
    with torch.inference_mode():
        found = network(torch.from_numpy(observation[None])).numpy()[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
