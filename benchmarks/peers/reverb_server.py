"""A Reverb server in a process of its own, and a writer of windows of frames."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

TABLE = "replay"
STACK, N_STEP = 4, 3
WINDOW = STACK + N_STEP
GAMMA = 0.99


def _serve(port: int, max_size: int, ready: Any, stop: Any) -> None:
    import reverb
    import tensorflow as tf

    signature = {
        "frame": tf.TensorSpec([WINDOW, 84, 84], tf.uint8),
        "action": tf.TensorSpec([], tf.int32),
        "reward": tf.TensorSpec([], tf.float32),
        "discount": tf.TensorSpec([], tf.float32),
    }
    table = reverb.Table(
        name=TABLE,
        sampler=reverb.selectors.Prioritized(0.6),
        remover=reverb.selectors.Fifo(),
        max_size=max_size,
        rate_limiter=reverb.rate_limiters.MinSize(1),
        signature=signature,
    )
    server = reverb.Server([table], port=port)
    ready.set()
    stop.wait()
    server.stop()


@contextmanager
def served(max_size: int) -> Iterator[str]:
    """The address of a server with one prioritized table of so many items."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    process = context.Process(target=_serve, args=(port, max_size, ready, stop))
    process.start()
    ready.wait()
    try:
        yield f"localhost:{port}"
    finally:
        stop.set()
        process.join()


def episodes(path: str) -> Iterator[tuple[Any, Any, Any, bool]]:
    """(frames[L + 1], action[L], reward[L], terminated) of the frame set, over and over."""
    with np.load(path) as arrays:
        frames, action, reward = arrays["frames"], arrays["action"], arrays["reward"]
        lengths, terminated = arrays["lengths"].tolist(), arrays["terminated"].tolist()
    while True:
        frame = decision = 0
        for length, ended in zip(lengths, terminated, strict=True):
            columns = slice(decision, decision + length)
            yield frames[frame : frame + length + 1], action[columns], reward[columns], ended
            frame += length + 1
            decision += length


def write(client: Any, path: str, chunk_length: int) -> Generator[None, None, None]:
    """Insert one window after another with one writer, yielding after each.

    A window holds the stack and the n frames behind it; windows cut short by an episode's end are left out.
    """
    keep = max(WINDOW, chunk_length)
    for frames, action, reward, _ in episodes(path):
        with client.trajectory_writer(num_keep_alive_refs=keep) as writer:
            for column in ("frame", "action", "reward", "discount"):
                writer.configure(column, num_keep_alive_refs=keep, max_chunk_length=chunk_length)
            for t in range(len(action)):
                writer.append(
                    {
                        "frame": frames[t],
                        "action": np.int32(action[t]),
                        "reward": reward[t],
                        "discount": np.float32(GAMMA**N_STEP),
                    }
                )
                if t + 1 < WINDOW:
                    continue
                history = writer.history
                writer.create_item(
                    table=TABLE,
                    priority=1.0,
                    trajectory={
                        "frame": history["frame"][-WINDOW:],
                        "action": history["action"][-N_STEP - 1],
                        "reward": history["reward"][-N_STEP - 1],
                        "discount": history["discount"][-N_STEP - 1],
                    },
                )
                if t % 64 == 0:
                    writer.flush(block_until_num_items=128)
                yield
            writer.end_episode()


def fill(client: Any, path: str, chunk_length: int, items: int) -> None:
    """Insert so many windows, and wait until they are in the table."""
    writing = write(client, path, chunk_length)
    for _ in range(items):
        next(writing)
    writing.close()
    while client.server_info()[TABLE].current_size < items - 256:
        pass
