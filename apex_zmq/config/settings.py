"""The typed tree of settings: frozen, each with type, range, default and description.

Units are part of the name (`_s` seconds, `_bytes`) or of the description. Files
under `configs/` change the defaults. This module imports neither torch nor
numba, so that `--help` is fast.
"""

from __future__ import annotations

import functools
import math
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

LARGEST = 1e30  # finite, in float32 too
SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >="}  # of bounds, by msgspec's name

Count = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
Seed = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]  # range of torch's generators
Finite = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
NonNegative = Annotated[float, Meta(ge=0, le=LARGEST)]
Positive = Annotated[float, Meta(gt=0, le=LARGEST)]
Seconds = Annotated[float, Meta(gt=0, le=1e9)]  # range of the system's clocks and waits
Probability = Annotated[float, Meta(ge=0, le=1)]


def doc(description: str) -> Meta:
    """The help text of a setting."""
    return Meta(description=description)


class Section(Struct, frozen=True, forbid_unknown_fields=True):
    """Base class of all sections."""


class Run(Section, frozen=True):
    """One training run: its place on disk, seed and budgets."""

    dir: Annotated[str | None, doc("Run directory; null: checkpoints/<config name>-<time>.")] = None
    seed: Annotated[Seed, doc("Seed of networks, exploration and environments.")] = 0
    num_actors: Annotated[Count, doc("Actor processes that apex-train starts.")] = 4
    episodes: Annotated[Count | None, doc("Budget of episodes, after which the run ends; null: none.")] = 2000
    max_minutes: Annotated[Positive | None, doc("Budget of minutes, after which the run ends; null: none.")] = None
    max_decisions: Annotated[
        Count | None, doc("Budget of decisions (agent steps) of all actors, after which the run ends; null: none.")
    ] = None
    max_updates: Annotated[Count | None, doc("Budget of gradient steps, after which the run ends; null: none.")] = None


class Reward(Section, frozen=True):
    """The Mario reward: a sum of terms per decision, or the reward of a package."""

    preset: Annotated[
        Literal["terms", "gym-super-mario-bros-7.4", "gym-super-mario-bros-9.1"],
        doc("terms: the terms below; else the reward of that version, summed over the frames of a decision."),
    ] = "terms"
    progress: Annotated[Finite, doc("Reward per pixel of new ground: beyond the largest x of the area so far.")] = 0.1
    progress_clip: Annotated[Count, doc("Maximum pixels of progress rewarded per decision.")] = 12
    progress_standing: Annotated[
        bool, doc("Progress counts where Mario stands or swims only: a fall beside a platform earns none.")
    ] = False
    area: Annotated[Finite, doc("Reward at the first entry into an area, such as the one behind a pipe.")] = 1.0
    loop: Annotated[Finite, doc("Reward where a maze takes Mario back.")] = -3.0
    time: Annotated[Finite, doc("Reward per decision.")] = -0.01
    death: Annotated[Finite, doc("Reward at a death.")] = -3.0
    clear: Annotated[Finite, doc("Reward at the flag or the end of a castle.")] = 5.0
    score: Annotated[Finite, doc("Reward per point of the game's score.")] = 0.0
    coins: Annotated[Finite, doc("Reward per coin.")] = 0.0
    power_up: Annotated[
        Finite, doc("Reward per power-up (small, tall, fire); its negative when a power-up is lost.")
    ] = 0.0


class Env(Section, frozen=True):
    """The environment: Super Mario Bros by stage, or any Gymnasium environment with discrete actions."""

    id: Annotated[
        str,
        doc(
            "SuperMarioBros, SuperMarioBros2 (the Lost Levels), a Gymnasium id, ALE/Game-v5 (extra: atari), "
            "or package.module:factory."
        ),
    ] = "SuperMarioBros"
    emulator: Annotated[
        Literal["auto", "fceumm", "nes-py"],
        doc("Emulator of Mario; auto: FCEUmm if stable-retro is installed, else nes-py."),
    ] = "auto"
    stages: Annotated[
        Literal["all"] | Annotated[tuple[str, ...], Meta(min_length=1)],
        doc("Mario stages 1-1 to 8-4 (SuperMarioBros2: 4-4), one drawn per episode; all: the whole game from 1-1."),
    ] = ("1-1",)
    lives: Annotated[
        Literal[1, 3],
        doc("Lives per Mario episode; 3: the game's own, with extra lives; losing one is not terminal."),
    ] = 1
    actions: Annotated[
        Literal["RIGHT_ONLY", "SIMPLE_MOVEMENT", "COMPLEX_MOVEMENT"] | tuple[tuple[str, ...], ...],
        doc("Action set by name, or a list of button lists (NOOP right left up down A B)."),
    ] = "SIMPLE_MOVEMENT"
    frame_skip: Annotated[int, Meta(ge=1, le=60), doc("Emulator frames per decision (Mario, Atari).")] = 4
    max_pool: Annotated[
        bool, doc("Pixelwise maximum over the last two emulator frames of a decision (Mario; always on for Atari).")
    ] = False
    sticky: Annotated[
        Probability, doc("Probability per decision that the previous action replaces the chosen one.")
    ] = 0.0
    hud: Annotated[
        Literal["crop", "mask", "keep"], doc("The 32 rows of score and clock: removed, blackened, or kept.")
    ] = "crop"
    show_buttons: Annotated[
        bool, doc("Squares in a Mario frame, white while A and B are held: a jump needs A released first.")
    ] = False
    frame_height: Annotated[int, Meta(ge=8, le=240), doc("Rows of an image frame after resizing.")] = 84
    frame_width: Annotated[int, Meta(ge=8, le=256), doc("Columns of an image frame after resizing.")] = 84
    frame_stack: Annotated[int, Meta(ge=1, le=16), doc("Frames per observation (1 for vectors).")] = 4
    noop_max: Annotated[
        int,
        Meta(ge=0, le=255),
        doc("Maximum of random no-op emulator frames at the start of an episode (Mario, Atari)."),
    ] = 30
    stall_limit: Annotated[
        Count | None, doc("Decisions without new ground after which a Mario episode ends; null: no limit.")
    ] = 300
    stall_end: Annotated[
        Literal["truncation", "failure"],
        doc("How it ends then: truncation costs nothing, failure ends it like a death, with its reward."),
    ] = "truncation"
    loop_ends: Annotated[bool, doc("Whether a Mario episode ends where a maze takes Mario back.")] = False
    max_episode_steps: Annotated[
        Count | None, doc("Decisions after which an episode is truncated; null: the environment's own limit.")
    ] = None
    clip_reward: Annotated[bool, doc("Reward of each decision clipped to [-1, 1], as is usual for Atari.")] = False
    reward: Annotated[Reward, doc("Terms of the Mario reward.")] = Reward()


class Agent(Section, frozen=True):
    """Network and returns, which must be the same for actor and learner."""

    network: Annotated[
        Literal["nature", "small", "mlp"],
        doc("Q-network: nature (Mnih 2015), small (a CNN for CPUs), mlp (vectors)."),
    ] = "nature"
    dueling: Annotated[bool, doc("Separate streams for value and advantages (Wang 2016); false: one stream.")] = True
    layer_norm: Annotated[bool, doc("Layer norm before every ReLU of the network; the torso of mlp always has it.")] = (
        False
    )
    n_step: Annotated[int, Meta(ge=1, le=64), doc("Steps of the n-step return.")] = 3
    cut_returns: Annotated[
        bool, doc("End n-step returns before an exploratory action that did worse than the greedy one would have.")
    ] = False
    gamma: Annotated[Probability, doc("Discount factor per decision.")] = 0.99


class Restarts(Section, frozen=True):
    """Episodes that begin from saved states of earlier ones (Mario on FCEUmm, ALE games)."""

    share: Annotated[
        Probability,
        doc("Largest share of such episodes in the decisions of lanes with epsilon above 0.01; 0: none."),
    ] = 0.0
    explorers: Annotated[
        Probability, doc("Share of random actions in their decisions until some episode has reached the goal.")
    ] = 0.8
    length: Annotated[Count, doc("Decisions after which the episodes of the others are truncated.")] = 128
    max_bytes: Annotated[Count, doc("Memory of an actor's saved states, in bytes.")] = 256_000_000


class Actor(Section, frozen=True):
    """Acting: lanes, exploration, sending of experience."""

    lanes: Annotated[int, Meta(ge=1, le=256), doc("Environment lanes per actor process.")] = 8
    segment_length: Annotated[int, Meta(ge=1, le=1024), doc("Transitions per segment sent to the replay.")] = 32
    epsilon: Annotated[
        Probability, doc("Base eps of the exploration schedule over lanes, eps^(1 + alpha i/(N-1)).")
    ] = 0.4
    epsilon_alpha: Annotated[NonNegative, doc("Exponent alpha of the exploration schedule.")] = 7.0
    repeat_zeta: Annotated[
        Annotated[float, Meta(gt=1, le=LARGEST)] | None,
        doc("Exponent of the zeta distribution of action repeats (epsilon-z-greedy); null: no repeats."),
    ] = None
    repeat_max: Annotated[Count, doc("Maximum decisions that a random action is repeated for (epsilon-z-greedy).")] = 12
    when_blocked: Annotated[
        Literal["block", "drop_oldest"],
        doc("While no shard accepts a segment: block waits; drop_oldest continues and keeps the newest 64 segments."),
    ] = "block"
    watchdog_s: Annotated[
        Seconds, doc("Seconds that a step of the emulator, or a frozen process, may take before the actor exits.")
    ] = 120.0
    threads: Annotated[Count, doc("Torch threads of an actor.")] = 1
    restarts: Annotated[Restarts, doc("Restarts.")] = Restarts()


class Replay(Section, frozen=True):
    """Prioritized replay; counts are totals over all shards."""

    shards: Annotated[int, Meta(ge=1, le=64), doc("Replay processes.")] = 1
    capacity: Annotated[Count, doc("Maximum transitions stored.")] = 1_000_000
    arena_bytes: Annotated[int, Meta(ge=1 << 20), doc("Maximum bytes of compressed experience stored.")] = 2_000_000_000
    min_size: Annotated[Count, doc("Transitions inserted before the first batch.")] = 50_000
    alpha: Annotated[Probability, doc("Priority exponent: p = (|TD| + epsilon)^alpha.")] = 0.6
    epsilon: Annotated[Positive, doc("Constant added to |TD| before the exponent.")] = 0.01
    samples_per_insert: Annotated[
        Positive | None, doc("Samples drawn per transition inserted; null: not limited, as in the paper.")
    ] = None
    tolerance: Annotated[
        Positive | None,
        doc("Samples by which the ratio may be off in each direction; null: 4 (batch + ratio x segment)."),
    ] = None
    credits: Annotated[
        int, Meta(ge=1, le=64), doc("Maximum batches in flight from a shard to a rank of the learner.")
    ] = 4
    credit_timeout_s: Annotated[
        Seconds, doc("Seconds after which an unacknowledged batch counts as lost and its credit is returned.")
    ] = 30.0
    snapshot_dir: Annotated[
        str | None,
        doc(
            "Directory on a local disk of the replay's host; shard S stores its experience in replay-S below it and "
            "restores it from there; null: in memory only. apex-train uses the run directory."
        ),
    ] = None
    snapshot_interval_s: Annotated[
        Seconds | None, doc("Seconds between snapshots of priorities and counters; null: as if snapshot_dir were null.")
    ] = 60.0


class Learner(Section, frozen=True):
    """Gradient steps, target network, checkpoints, publication of parameters."""

    device: Annotated[
        Literal["auto", "cpu", "cuda"], doc("Device of the networks; auto: cuda if available, else cpu.")
    ] = "auto"
    threads: Annotated[Count, doc("Torch threads of the learner on the CPU.")] = 1
    batch_size: Annotated[int, Meta(ge=1, le=65536), doc("Transitions per gradient step and rank.")] = 512
    optimizer: Annotated[Literal["adam", "rmsprop"], doc("adam, or centered rmsprop with eps inside the root.")] = (
        "adam"
    )
    learning_rate: Annotated[Positive, doc("Step size of the optimizer.")] = 2.5e-4
    learning_rate_decay: Annotated[
        Count | None,
        doc("Updates that halve the step size, divided by 1 + updates / learning_rate_decay; null: constant."),
    ] = None
    optimizer_eps: Annotated[Positive, doc("Epsilon of the optimizer.")] = 1.5e-4
    rmsprop_decay: Annotated[Probability, doc("Decay of RMSProp's averages.")] = 0.95
    loss: Annotated[Literal["l2", "huber"], doc("Loss on the TD error; huber's threshold is 1.")] = "huber"
    max_grad_norm: Annotated[Positive, doc("Maximum norm of the gradient, which is clipped to it.")] = 40.0
    double: Annotated[bool, doc("Double Q-learning: the online network chooses the next action.")] = True
    target_period: Annotated[Count, doc("Updates between copies to the target network.")] = 2500
    average_updates: Annotated[
        Count | None,
        doc(
            "Updates over which a checkpoint's evaluation parameters are averaged, or a tenth of all updates so far if "
            "that is less; null: evaluations play the newest parameters."
        ),
    ] = None
    max_bad_steps: Annotated[
        Count,
        doc("Steps in a row with loss, gradient or parameters that are not finite, after which the learner exits."),
    ] = 20
    beta: Annotated[Probability, doc("Importance-sampling exponent at the start.")] = 0.4
    beta_annealing: Annotated[NonNegative, doc("Increment of beta per update, up to 1.")] = 0.001
    sync_every: Annotated[Count, doc("Updates between parameter publications.")] = 1000
    save_every: Annotated[Count, doc("Updates between checkpoints.")] = 5000
    keep_checkpoints: Annotated[NonNegativeInt, doc("Maximum numbered checkpoints kept; 0: all.")] = 10


class Telemetry(Section, frozen=True):
    """Status messages, log lines, TensorBoard."""

    status_interval_s: Annotated[Seconds, doc("Seconds between status messages of a role.")] = 1.0
    log_interval_s: Annotated[Seconds, doc("Seconds between TensorBoard points and progress lines.")] = 10.0
    log_level: Annotated[Literal["debug", "info", "warning", "error"], doc("Lowest level logged.")] = "info"
    metrics_port: Annotated[
        Annotated[int, Meta(ge=1, le=65535)] | None,
        doc(
            "TCP port of a role's Prometheus metrics, or the next free port; apex-train counts up from the learner's "
            "to those of shards and actors; null: not served."
        ),
    ] = None
    metrics_host: Annotated[
        str, doc("Interface that serves metrics, without keys: any but loopback is open to other hosts.")
    ] = "127.0.0.1"


class Addresses(Section, frozen=True):
    """Addresses tcp://host:port or ipc:///path, bound by the role in brackets; apex-train chooses its own."""

    experience: Annotated[
        tuple[str, ...], Meta(min_length=1), doc("[replay] Segments from actors; one address per shard.")
    ] = ("tcp://127.0.0.1:5551",)
    priorities: Annotated[
        tuple[str, ...], Meta(min_length=1), doc("[replay] Priorities from the learner; one address per shard.")
    ] = ("tcp://127.0.0.1:5552",)
    batches: Annotated[
        str | Annotated[tuple[str, ...], Meta(min_length=1)],
        doc("[learner] Batches from all shards; under torchrun a list, one address per rank."),
    ] = "tcp://127.0.0.1:5553"
    parameters: Annotated[str, doc("[learner] Parameters, heartbeats and relayed statuses.")] = "tcp://127.0.0.1:5554"
    status: Annotated[str, doc("[learner] Statuses of every role.")] = "tcp://127.0.0.1:5555"
    keys: Annotated[
        str | None, doc("Directory of this process's keys, made by apex-keys; null: no encryption or authentication.")
    ] = None
    insecure: Annotated[bool, doc("Permission to bind to an address that other hosts can reach, without keys.")] = False


# Settings of `addresses` that are the addresses of links, and those that have a flag and an environment variable.
LINK_ADDRESSES = tuple(name for name in Addresses.__struct_fields__ if name not in ("keys", "insecure"))
ADDRESSES = (*LINK_ADDRESSES, "keys")


class Config(Section, frozen=True):
    """All settings of a run."""

    run: Annotated[Run, doc("The run.")] = Run()
    env: Annotated[Env, doc("The environment.")] = Env()
    agent: Annotated[Agent, doc("Network and returns.")] = Agent()
    actor: Annotated[Actor, doc("Acting.")] = Actor()
    replay: Annotated[Replay, doc("Replay.")] = Replay()
    learner: Annotated[Learner, doc("Learning.")] = Learner()
    telemetry: Annotated[Telemetry, doc("Telemetry.")] = Telemetry()
    addresses: Annotated[Addresses, doc("Addresses.")] = Addresses()


class Setting(typing.NamedTuple):
    """One documented setting, for the loader, `--help` and the documents."""

    name: str  # dotted
    hint: Any  # annotated type, to which msgspec converts
    type: str  # the same as text
    range: str  # bounds of a number or a length; empty: none
    default: Any
    description: str


@functools.cache
def sections() -> dict[str, type[Section]]:
    """Each section by dotted name, in the order of definition; the empty name stands for the whole tree."""
    return dict(_sections("", Config))


@functools.cache
def settings() -> tuple[Setting, ...]:
    """Every setting, in the order of definition."""
    found = []
    for section_name, section in sections().items():
        hints = _hints(section)
        for field in msgspec.structs.fields(section):
            name, hint = _join(section_name, field.name), hints[field.name]
            if name in sections():
                continue
            bare, *metas = typing.get_args(hint)  # nested Annotated are flattened
            description = next(meta.description for meta in metas if meta.description is not None)
            default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
            found.append(Setting(name, hint, _type_name(bare), ", ".join(_bounds(hint)), default, description))
    return tuple(found)


@functools.cache
def by_name() -> dict[str, Setting]:
    """Every setting by dotted name."""
    return {setting.name: setting for setting in settings()}


def _sections(name: str, section: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    yield name, section
    for key, hint in _hints(section).items():
        bare = typing.get_args(hint)[0]
        if isinstance(bare, type) and issubclass(bare, Section):
            yield from _sections(_join(name, key), bare)


def _join(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key


def _hints(section: type[Section]) -> dict[str, Any]:
    return typing.get_type_hints(section, include_extras=True)


def _bounds(hint: Any) -> Iterator[str]:
    """Bounds of a number or a length, at any depth of an annotation."""
    for meta in getattr(hint, "__metadata__", ()):
        for attribute, sign in SIGNS.items():
            bound = getattr(meta, attribute)
            if bound is not None and abs(bound) < LARGEST:
                yield f"{sign} {bound:,}"
    if typing.get_origin(hint) is not Literal:
        for part in typing.get_args(hint):
            yield from _bounds(part)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    options = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return " | ".join(str(option) for option in options)
    if typing.get_origin(hint) is tuple:
        return f"[{_type_name(options[0])}, ...]"
    if options:
        return " | ".join(_type_name(option) for option in options)
    return "null" if hint is type(None) else str(hint.__name__)


def to_tree(config: Section) -> dict[str, Any]:
    """Plain values, ready for YAML, JSON or `from_tree`."""
    return typing.cast("dict[str, Any]", msgspec.to_builtins(config))


def tolerance(config: Config) -> float:
    """`replay.tolerance` in samples, with its default resolved."""
    replay = config.replay
    if replay.tolerance is not None:
        return replay.tolerance
    per_insert = replay.samples_per_insert or 0.0
    return 4.0 * (config.learner.batch_size + per_insert * config.actor.segment_length)


def min_size_per_shard(config: Config) -> int:
    """Transitions that a shard holds before it sends its first batch."""
    return math.ceil(config.replay.min_size / config.replay.shards)


def addresses_of(addresses: Addresses, name: str) -> tuple[str, ...]:
    """Addresses of a link, in the order of shards or ranks; name: one of `LINK_ADDRESSES`."""
    found = getattr(addresses, name)
    return (found,) if isinstance(found, str) else tuple(found)
