"""Receives batches from the shards and decodes them into buffers for the network, in its own thread."""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from apex_zmq.config.settings import Config
from apex_zmq.net.sockets import Inbox, Links
from apex_zmq.types import Batch, FrameSpec, Sample
from apex_zmq.wire.body import Parts
from apex_zmq.wire.checksums import corrupted_windows
from apex_zmq.wire.codec import Kind, WireError
from apex_zmq.wire.experience import decode_batch
from apex_zmq.wire.frames import decode_windows

log = logging.getLogger(__name__)

DECODED_AHEAD = 2
IDLE_S = 0.1
FOREIGN_PER_LINE = 100  # batches for another learner between two warnings


def decode_known_batch(parts: Parts, frame: FrameSpec, n_step: int, num_shards: int) -> Batch:
    """Decode a batch of one of the run's shards.

    Raises:
        WireError: as `decode_batch`; the shard number has no address in `addresses.priorities`.
    """
    batch = decode_batch(parts, frame, n_step)
    if batch.shard >= num_shards:
        raise WireError(f"shard {batch.shard}, but addresses.priorities lists {num_shards}; list one address per shard")
    return batch


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """A batch and its frames. `Feeder.recycle` returns the memory of `windows`."""

    batch: Batch
    windows: npt.NDArray[Any]  # [B, W, *frame]
    broken: npt.NDArray[np.bool_]  # [B] rows with undecodable frames, a wrong checksum or an unknown action


def bind_batches(links: Links, config: Config, rank: int, frame: FrameSpec) -> Inbox[Batch]:
    """Bind the socket on which a rank of the learner receives its batches.

    Raises:
        ConfigError: the address cannot be bound.
    """
    num_shards = len(config.addresses.priorities)
    return links.bind(
        "batches", {Kind.BATCH: lambda parts: decode_known_batch(parts, frame, config.agent.n_step, num_shards)}, rank
    )


class Feeder(threading.Thread):
    """Receives the batches of one learner incarnation and decodes each frame once.

    inbox: closed with the feeder. learner_incarnation: batches for any other are dropped.
    num_actions: rows with a larger action are broken. pin_memory: use page-locked buffers, for copies to a GPU.

    corrupted: number of windows so far with a wrong checksum. decode_s: seconds spent decoding and checking.
    Only this thread writes both.
    """

    def __init__(self, inbox: Inbox[Batch], *, learner_incarnation: int, num_actions: int, pin_memory: bool) -> None:
        super().__init__(name="feeder", daemon=True)
        self._inbox = inbox
        self._learner_incarnation = learner_incarnation
        self._num_actions = num_actions
        self._pin_memory = pin_memory
        self.corrupted = 0
        self.decode_s = 0.0
        self._foreign = 0
        self._decoded: queue.Queue[DecodedBatch] = queue.Queue(DECODED_AHEAD)
        self._buffers: queue.SimpleQueue[npt.NDArray[Any]] = queue.SimpleQueue()
        self._closing = threading.Event()

    def get(self, timeout_s: float) -> DecodedBatch | None:
        """Return the next decoded batch; None: none within the timeout."""
        try:
            return self._decoded.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def recycle(self, decoded: DecodedBatch) -> None:
        """Return a batch's memory for reuse; its windows must not be read afterwards."""
        self._buffers.put(decoded.windows)

    @property
    def decoded(self) -> int:
        """Number of decoded batches in the queue."""
        return self._decoded.qsize()

    def check_version(self) -> None:
        """Check that the shards speak this major version of the protocol.

        Raises:
            MismatchError: they speak another one.
        """
        self._inbox.check_version("replay")

    @property
    def refused(self) -> int:
        """Number of messages dropped because they break the protocol."""
        return self._inbox.refused

    def run(self) -> None:
        """Receive and decode until closed."""
        while not self._closing.is_set():
            batch = self._inbox.receive(IDLE_S)
            if batch is None:
                continue
            if batch.learner_incarnation != self._learner_incarnation:
                self._count_foreign(batch.learner_incarnation)
                continue
            started = time.monotonic()
            transitions = batch.sample.transitions.copy()
            unknown = transitions["action"] >= self._num_actions
            transitions["action"][unknown] = 0
            sample = replace(batch.sample, transitions=transitions)
            windows = self._buffer(sample)
            broken = decode_windows(sample.frames, sample.frame_sizes, sample.frame, windows)
            corrupted = corrupted_windows(sample.frames, sample.frame_sizes, transitions["window_crc"])
            self.corrupted += int(corrupted.sum())
            self.decode_s += time.monotonic() - started
            self._enqueue(DecodedBatch(replace(batch, sample=sample), windows, broken | corrupted | unknown))
        self._inbox.close()

    def _count_foreign(self, incarnation: int) -> None:
        # Few: batches in flight when this learner replaced another. Many: another learner has replaced this one.
        self._foreign += 1
        if self._foreign % FOREIGN_PER_LINE == 0:
            log.warning(
                "%d batches for a learner of incarnation %d dropped: two learners are running; stop one",
                self._foreign,
                incarnation,
            )

    def _buffer(self, sample: Sample) -> npt.NDArray[Any]:
        shape = (*sample.frame_sizes.shape, *sample.frame.shape)
        try:
            buffer = self._buffers.get_nowait()
        except queue.Empty:
            buffer = np.empty(0)
        if buffer.shape == shape:
            return buffer
        # Zeros: padding of short windows is never used, but must be finite.
        dtype = torch.uint8 if sample.frame.dtype == "uint8" else torch.float32
        fresh: npt.NDArray[Any] = torch.zeros(shape, dtype=dtype, pin_memory=self._pin_memory).numpy()
        return fresh

    def _enqueue(self, decoded: DecodedBatch) -> None:
        while not self._closing.is_set():
            try:
                self._decoded.put(decoded, timeout=IDLE_S)
                return
            except queue.Full:
                continue

    def close(self) -> None:
        """Stop the thread and unbind its address."""
        self._closing.set()
        if self.is_alive():
            self.join()
        else:
            self._inbox.close()
