"""One typed tree of settings: frozen, documented, validated.

Units stand in the names (`_s` seconds, `_bytes`) or in the description. The
defaults are the program's; files under `configs/` choose others. This module
imports neither torch nor numba, so that `--help` answers at once.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

ADDRESSES = ("experience", "priorities", "batches", "parameters", "status", "keys")  # what has a flag and a variable
LARGEST = 1e30  # finite, in float32 too

Count = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
Seed = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]  # as far as torch's generators reach
Finite = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
NonNegative = Annotated[float, Meta(ge=0, le=LARGEST)]
Positive = Annotated[float, Meta(gt=0, le=LARGEST)]
Seconds = Annotated[float, Meta(gt=0, le=1e9)]  # as far as the system's clocks and waits reach
Probability = Annotated[float, Meta(ge=0, le=1)]


def doc(description: str) -> Meta:
    """The help text of a setting."""
    return Meta(description=description)


class Section(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all sections: frozen, unknown keys refused."""


class Run(Section, frozen=True):
    """One training run: its place on disk, seed and budgets."""

    dir: Annotated[str | None, doc("Run directory; null: checkpoints/<config name>-<time>.")] = None
    seed: Annotated[Seed, doc("Seed of networks, exploration and environments.")] = 0
    num_actors: Annotated[Count, doc("Actor processes that apex-train starts.")] = 4
    episodes: Annotated[Count | None, doc("Stop after so many episodes; null: never.")] = 2000
    max_minutes: Annotated[Positive | None, doc("Stop after so many minutes; null: never.")] = None
    max_decisions: Annotated[
        Count | None, doc("Stop after so many decisions (agent steps) of all actors; null: never.")
    ] = None
    max_updates: Annotated[Count | None, doc("Stop after so many gradient steps; null: never.")] = None


class Reward(Section, frozen=True):
    """The Mario reward: terms added up once per decision, or that of a package."""

    preset: Annotated[
        Literal["terms", "gym-super-mario-bros-7.4", "gym-super-mario-bros-9.1"],
        doc("terms: those below; else that version's own reward, summed over a decision's frames, and no terms."),
    ] = "terms"
    progress: Annotated[Finite, doc("Per pixel of new maximum x.")] = 0.1
    progress_clip: Annotated[Count, doc("Pixels of progress counted at most per decision.")] = 12
    time: Annotated[Finite, doc("Per decision.")] = -0.01
    death: Annotated[Finite, doc("At a death.")] = -3.0
    clear: Annotated[Finite, doc("At the flag or a change of stage.")] = 5.0
    score: Annotated[Finite, doc("Per point of the game's score.")] = 0.0
    coins: Annotated[Finite, doc("Per coin.")] = 0.0
    power_up: Annotated[Finite, doc("Per power-up (small, tall, fire); taken back when it is lost.")] = 0.0


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
        Literal["auto", "fceumm", "nes-py"], doc("auto: FCEUmm where stable-retro is installed, else nes-py.")
    ] = "auto"
    stages: Annotated[
        Literal["all"] | Annotated[tuple[str, ...], Meta(min_length=1)],
        doc("Stages 1-1 to 8-4 (SuperMarioBros2: 4-4), drawn per episode; all: the whole game from 1-1 on."),
    ] = ("1-1",)
    lives: Annotated[
        Literal[1, 3],
        doc("Lives of a Mario episode; 3: the game's own, extra lives included, a lost one being no terminal end."),
    ] = 1
    actions: Annotated[
        Literal["RIGHT_ONLY", "SIMPLE_MOVEMENT", "COMPLEX_MOVEMENT"] | tuple[tuple[str, ...], ...],
        doc("Action set by name, or a list of button lists (NOOP right left up down A B)."),
    ] = "SIMPLE_MOVEMENT"
    frame_skip: Annotated[int, Meta(ge=1, le=60), doc("Emulator frames per decision (Mario, Atari).")] = 4
    max_pool: Annotated[
        bool, doc("Pixelwise maximum of a decision's last two emulator frames (Mario; Atari always does).")
    ] = False
    sticky: Annotated[
        Probability, doc("Probability per decision that the previous action is repeated in place of the one chosen.")
    ] = 0.0
    hud: Annotated[
        Literal["crop", "mask", "keep"], doc("The 32 rows of score and clock: cut off, blackened, or kept.")
    ] = "crop"
    show_buttons: Annotated[
        bool, doc("Draw squares into a Mario frame, white while A and B are held: a jump needs A released first.")
    ] = False
    frame_height: Annotated[int, Meta(ge=8, le=240), doc("Rows of an image frame after resizing.")] = 84
    frame_width: Annotated[int, Meta(ge=8, le=256), doc("Columns of an image frame after resizing.")] = 84
    frame_stack: Annotated[int, Meta(ge=1, le=16), doc("Frames per observation (1 for vectors).")] = 4
    noop_max: Annotated[
        int, Meta(ge=0, le=255), doc("Random no-op emulator frames at an episode's start, at most (Mario, Atari).")
    ] = 30
    stall_limit: Annotated[
        Count | None, doc("Decisions without a new maximum x that truncate an episode; null: none.")
    ] = 300
    max_episode_steps: Annotated[
        Count | None, doc("Decisions that truncate an episode; null: none beyond the environment's own.")
    ] = None
    clip_reward: Annotated[bool, doc("Clip each decision's reward to [-1, 1], as is usual for Atari.")] = False
    reward: Annotated[Reward, doc("Terms of the Mario reward.")] = Reward()


class Agent(Section, frozen=True):
    """What actor and learner must agree on beside the environment."""

    network: Annotated[
        Literal["nature", "small", "mlp"],
        doc("Q-network: nature (Mnih 2015), small (a CNN for CPUs), mlp (vectors)."),
    ] = "nature"
    dueling: Annotated[bool, doc("Value and advantages apart (Wang 2016), or one stream for both.")] = True
    layer_norm: Annotated[
        bool, doc("Layer norm before every ReLU of the network; the torso of mlp has it in any case.")
    ] = False
    n_step: Annotated[int, Meta(ge=1, le=64), doc("Steps of the n-step return.")] = 3
    gamma: Annotated[Probability, doc("Discount per decision.")] = 0.99


class Actor(Section, frozen=True):
    """Acting: lanes, exploration, shipping."""

    lanes: Annotated[int, Meta(ge=1, le=256), doc("Environment lanes per actor process.")] = 8
    segment_length: Annotated[int, Meta(ge=1, le=1024), doc("Transitions per shipped segment.")] = 32
    epsilon: Annotated[Probability, doc("Base of the exploration ladder eps^(1 + alpha i/(N-1)).")] = 0.4
    epsilon_alpha: Annotated[NonNegative, doc("Exponent alpha of the ladder.")] = 7.0
    repeat_zeta: Annotated[
        Annotated[float, Meta(gt=1, le=LARGEST)] | None,
        doc("Epsilon-z-greedy: exponent of the zeta law of repeats; null: single steps."),
    ] = None
    repeat_max: Annotated[Count, doc("Epsilon-z-greedy: decisions a random action lasts at most.")] = 12
    when_blocked: Annotated[
        Literal["block", "drop_oldest"],
        doc("While no shard can take a segment: block waits; drop_oldest plays on, the newest 64 segments kept."),
    ] = "block"
    watchdog_s: Annotated[
        Seconds, doc("Seconds of emulator work, or of a frozen process, after which an actor ends itself.")
    ] = 120.0
    threads: Annotated[Count, doc("Torch threads of an actor.")] = 1


class Replay(Section, frozen=True):
    """Prioritized replay; counts are over all shards."""

    shards: Annotated[int, Meta(ge=1, le=64), doc("Replay processes.")] = 1
    capacity: Annotated[Count, doc("Transitions kept.")] = 1_000_000
    arena_bytes: Annotated[int, Meta(ge=1 << 20), doc("Bytes of compressed experience kept.")] = 2_000_000_000
    min_size: Annotated[Count, doc("Transitions inserted before the first batch.")] = 50_000
    alpha: Annotated[Probability, doc("Priority exponent: p = (|TD| + epsilon)^alpha.")] = 0.6
    epsilon: Annotated[Positive, doc("Added to |TD| before the exponent.")] = 0.01
    samples_per_insert: Annotated[
        Positive | None, doc("Samples drawn per transition inserted; null: free-running, as in the paper.")
    ] = None
    tolerance: Annotated[
        Positive | None, doc("Samples the ratio may be off by, each way; null: 4 (batch + ratio x segment).")
    ] = None
    credits: Annotated[int, Meta(ge=1, le=64), doc("Batches in flight to a rank of the learner per shard.")] = 4
    credit_timeout_s: Annotated[
        Seconds, doc("Seconds after which an unacknowledged batch counts as lost and its credit returns.")
    ] = 30.0
    snapshot_dir: Annotated[
        str | None,
        doc(
            "Directory, on a local disk of the replay's host, where shard S keeps its experience below replay-S and "
            "finds it again; null: in memory only. apex-train: the run directory."
        ),
    ] = None
    snapshot_interval_s: Annotated[
        Seconds | None, doc("Seconds between snapshots of priorities and counters; null: replay.snapshot_dir is null.")
    ] = 60.0


class Learner(Section, frozen=True):
    """Gradient steps, target network, checkpoints, pace of publication."""

    device: Annotated[Literal["auto", "cpu", "cuda"], doc("auto: cuda where there is one.")] = "auto"
    threads: Annotated[Count, doc("Torch threads of the learner on the CPU.")] = 1
    batch_size: Annotated[
        int, Meta(ge=1, le=65536), doc("Transitions per gradient step; of each rank, where there are several.")
    ] = 512
    optimizer: Annotated[Literal["adam", "rmsprop"], doc("adam, or centered rmsprop with eps inside the root.")] = (
        "adam"
    )
    learning_rate: Annotated[Positive, doc("Step size.")] = 2.5e-4
    learning_rate_decay: Annotated[
        Count | None,
        doc("Updates after which the step size is half: it is divided by 1 + updates / this; null: constant."),
    ] = None
    optimizer_eps: Annotated[Positive, doc("Epsilon of the optimizer.")] = 1.5e-4
    rmsprop_decay: Annotated[Probability, doc("Decay of RMSProp's averages.")] = 0.95
    loss: Annotated[Literal["l2", "huber"], doc("Loss on the TD error; huber's threshold is 1.")] = "huber"
    max_grad_norm: Annotated[Positive, doc("Gradient norm is clipped to this before the step.")] = 40.0
    double: Annotated[bool, doc("Double Q-learning: the online network chooses the next action.")] = True
    target_period: Annotated[Count, doc("Updates between copies to the target network.")] = 2500
    average_updates: Annotated[
        Count | None,
        doc(
            "Updates over which checkpoints average the parameters that evaluations play, or a tenth of all so far "
            "while that is less; null: they play the newest."
        ),
    ] = None
    max_bad_steps: Annotated[
        Count, doc("Steps in a row whose loss, gradient or parameters are not finite, after which the learner ends.")
    ] = 20
    beta: Annotated[Probability, doc("Importance-sampling exponent at the start.")] = 0.4
    beta_annealing: Annotated[NonNegative, doc("Added to beta per update, up to 1.")] = 0.001
    sync_every: Annotated[Count, doc("Updates between parameter publications.")] = 1000
    save_every: Annotated[Count, doc("Updates between checkpoints.")] = 5000
    keep_checkpoints: Annotated[NonNegativeInt, doc("Numbered checkpoints kept; 0: all.")] = 10


class Telemetry(Section, frozen=True):
    """Status messages, log lines, TensorBoard."""

    status_interval_s: Annotated[Seconds, doc("Seconds between a role's status messages.")] = 1.0
    log_interval_s: Annotated[Seconds, doc("Seconds between TensorBoard points and progress lines.")] = 10.0
    log_level: Annotated[Literal["debug", "info", "warning", "error"], doc("Lowest level logged.")] = "info"
    metrics_port: Annotated[
        Annotated[int, Meta(ge=1, le=65535)] | None,
        doc(
            "First port on which a role looks for a free one to serve its metrics to Prometheus; apex-train: the "
            "learner's, the shards' and actors' follow; null: not served."
        ),
    ] = None
    metrics_host: Annotated[
        str, doc("Address of this host to serve metrics on; keys do not protect them: others than loopback are open.")
    ] = "127.0.0.1"


class Addresses(Section, frozen=True):
    """Where the roles meet: tcp://host:port or ipc:///path, bound by the role in brackets; apex-train takes its own."""

    experience: Annotated[tuple[str, ...], Meta(min_length=1), doc("[replay] One per shard.")] = (
        "tcp://127.0.0.1:5551",
    )
    priorities: Annotated[tuple[str, ...], Meta(min_length=1), doc("[replay] One per shard.")] = (
        "tcp://127.0.0.1:5552",
    )
    batches: Annotated[
        str | Annotated[tuple[str, ...], Meta(min_length=1)],
        doc("[learner] Batches from all shards; under torchrun a list, one per rank."),
    ] = "tcp://127.0.0.1:5553"
    parameters: Annotated[str, doc("[learner] Parameters, heartbeats, relayed status.")] = "tcp://127.0.0.1:5554"
    status: Annotated[str, doc("[learner] Status of every role.")] = "tcp://127.0.0.1:5555"
    keys: Annotated[
        str | None, doc("Directory of this process's keys, made by apex-keys; null: nothing is encrypted.")
    ] = None
    insecure: Annotated[bool, doc("Allow binding to an address that other hosts can reach, without keys.")] = False


class Config(Section, frozen=True):
    """All settings of a run."""

    run: Annotated[Run, doc("The run.")] = Run()
    env: Annotated[Env, doc("The environment.")] = Env()
    agent: Annotated[Agent, doc("What actor and learner share.")] = Agent()
    actor: Annotated[Actor, doc("Acting.")] = Actor()
    replay: Annotated[Replay, doc("Replay.")] = Replay()
    learner: Annotated[Learner, doc("Learning.")] = Learner()
    telemetry: Annotated[Telemetry, doc("Telemetry.")] = Telemetry()
    addresses: Annotated[Addresses, doc("Addresses.")] = Addresses()


class Setting(typing.NamedTuple):
    """One documented setting, for `--help` and the documents."""

    name: str  # dotted
    type: str
    default: Any
    description: str


def settings(section: type[Section] = Config, prefix: str = "") -> Iterator[Setting]:
    """Every setting below a section, in the order of definition."""
    hints = typing.get_type_hints(section, include_extras=True)
    for field in msgspec.structs.fields(section):
        bare, *metas = typing.get_args(hints[field.name])  # nested Annotated are flattened
        name = prefix + field.name
        if isinstance(bare, type) and issubclass(bare, Section):
            yield from settings(bare, name + ".")
            continue
        text = next(meta.description for meta in metas if meta.description is not None)
        default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        yield Setting(name, _type_name(bare), default, text)


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
    """Samples by which a shard's account may be off its samples-per-insert line."""
    replay = config.replay
    if replay.tolerance is not None:
        return replay.tolerance
    per_insert = replay.samples_per_insert or 0.0
    return 4.0 * (config.learner.batch_size + per_insert * config.actor.segment_length)


def min_size_per_shard(config: Config) -> int:
    """Transitions a shard holds before it deals its first batch."""
    return math.ceil(config.replay.min_size / config.replay.shards)


def batch_addresses(addresses: Addresses) -> tuple[str, ...]:
    """Where each rank of the learner takes its batches, in the order of ranks."""
    return (addresses.batches,) if isinstance(addresses.batches, str) else addresses.batches


def all_addresses(addresses: Addresses) -> tuple[str, ...]:
    """Every address of a run."""
    return (
        *addresses.experience,
        *addresses.priorities,
        *batch_addresses(addresses),
        addresses.parameters,
        addresses.status,
    )
