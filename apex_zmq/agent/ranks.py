"""The processes that make up a learner: as many as torchrun has started, or one alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from apex_zmq.errors import ConfigError


class RankLostError(Exception):
    """Another rank has ended, so this one cannot go on; whoever started them starts all again."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of its learner. Each method but those of a lone rank waits for all ranks to call it.

    rank: of this process, 0 to size - 1.
    local_rank: the same among those of its host; which GPU it takes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls, environ: Mapping[str, str] = os.environ) -> Ranks:
        """Meet the other ranks, where torchrun says that there are some (WORLD_SIZE and what goes with it).

        Raises:
            ConfigError: the environment is not that of torchrun.
        """
        size = int(environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environ]
        if missing:
            raise ConfigError(f"WORLD_SIZE is {size} and {missing[0]} is not set; start the learner with torchrun")
        on_one_host = environ.get("LOCAL_WORLD_SIZE") == environ["WORLD_SIZE"]
        if on_one_host:
            # Nobody else need reach what gloo listens on, nor need the host's name resolve.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        # A rank that waits for one that will never come must end when torchrun tells it to.
        handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
        store, rank, _ = next(rendezvous("env://"))
        if on_one_host:
            # torchrun's store outlives a restart, and holds where the ranks listened before it (pytorch #135712).
            # Hosts count restarts each for itself, so it would not do over several.
            store = PrefixStore(environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
        signal.signal(signal.SIGTERM, handler)
        return cls(rank, size, int(environ["LOCAL_RANK"]))

    def share(self, value: Any) -> Any:
        """Rank 0's value, which must be JSON; the others' are dropped.

        Raises:
            RankLostError
        """
        if self.size == 1:
            return value
        text = json.dumps(value).encode()
        with _together():
            length = torch.tensor([len(text)])
            distributed.broadcast(length, src=0)
            data = torch.zeros(int(length), dtype=torch.uint8)
            if self.rank == 0:
                data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
            distributed.broadcast(data, src=0)
        return json.loads(data.numpy().tobytes())

    def gather(self, row: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[R] the rows of all ranks in their order; each is of shape [] and of the same structured dtype.

        Raises:
            RankLostError
        """
        if self.size == 1:
            return row.reshape(1)
        mine = torch.from_numpy(np.frombuffer(row.tobytes(), np.uint8).copy())
        rows = torch.empty(self.size, len(mine), dtype=torch.uint8)
        with _together():
            distributed.all_gather(list(rows), mine)
        return np.frombuffer(rows.numpy().tobytes(), row.dtype)

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean over ranks, the same to the last bit on each.

        Raises:
            RankLostError
        """
        if self.size == 1:
            return tensor
        total = tensor.clone()
        with _together():
            distributed.all_reduce(total)
        return total / self.size

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of a loss made by a network of `parallel`.

        Raises:
            RankLostError
        """
        if self.size == 1:
            loss.backward()  # type: ignore[no-untyped-call]
            return
        with _together():
            loss.backward()  # type: ignore[no-untyped-call]

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network with rank 0's parameters, whose gradients become their means over ranks on the way back."""
        if self.size == 1:
            return network
        device = next(network.parameters()).device
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=devices)

    def leave(self) -> None:
        """Free what the ranks talk through; does not wait for the others."""
        if self.size > 1:
            distributed.destroy_process_group()


ALONE = Ranks()


@contextlib.contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RankLostError(f"another rank of the learner has ended: {error}") from error
