"""The ranks of a learner: processes started by torchrun (torch.distributed), or a single process."""

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

from apex_zmq.config import torchrun


class RankLostError(Exception):
    """Another rank has ended, so this one cannot continue; torchrun restarts all ranks."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the ranks of its learner.

    Collective calls: `share`, `gather`, `mean` and `backward` return once all ranks have called them; a single rank
    returns at once.

    rank: number of this process, 0 to size - 1.
    size: number of ranks, R.
    local_rank: number of this process on its host, and of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls, environ: Mapping[str, str] = os.environ) -> Ranks:
        """Join the process group of torchrun's environment; without WORLD_SIZE, be a single rank.

        Raises:
            ConfigError: as `torchrun.place`.
        """
        _, size, local_rank = torchrun.place(environ)
        if size == 1:
            return cls()
        on_one_host = environ.get("LOCAL_WORLD_SIZE") == environ["WORLD_SIZE"]
        if on_one_host:
            # Loopback suffices for gloo on one host, and does not require the host's name to resolve.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        # torchrun's SIGTERM must end a rank that waits for another one.
        handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
        store, rank, _ = next(rendezvous("env://"))
        if on_one_host:
            # torchrun's store outlives a restart and still holds the ranks' former addresses (pytorch #135712). A
            # prefix cannot work over several hosts: each host counts restarts by itself.
            store = PrefixStore(environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
        signal.signal(signal.SIGTERM, handler)
        return cls(rank, size, local_rank)

    def share(self, value: Any) -> Any:
        """Broadcast rank 0's value, of a type that JSON supports; other ranks' values are ignored.

        Raises:
            RankLostError: another rank has ended.
        """
        if self.size == 1:
            return value
        text = json.dumps(value).encode()
        with _collective():
            length = torch.tensor([len(text)])
            distributed.broadcast(length, src=0)
            data = torch.zeros(int(length), dtype=torch.uint8)
            if self.rank == 0:
                data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
            distributed.broadcast(data, src=0)
        return json.loads(data.numpy().tobytes())

    def gather(self, row: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Gather the rows of all ranks, [R]; each row has shape [] and the same structured dtype.

        Raises:
            RankLostError: another rank has ended.
        """
        if self.size == 1:
            return row.reshape(1)
        mine = torch.from_numpy(np.frombuffer(row.tobytes(), np.uint8).copy())
        rows = torch.empty(self.size, len(mine), dtype=torch.uint8)
        with _collective():
            distributed.all_gather(list(rows), mine)
        return np.frombuffer(rows.numpy().tobytes(), row.dtype)

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the mean over ranks, bitwise equal on all ranks.

        Raises:
            RankLostError: another rank has ended.
        """
        if self.size == 1:
            return tensor
        total = tensor.clone()
        with _collective():
            distributed.all_reduce(total)
        return total / self.size

    def backward(self, loss: torch.Tensor) -> None:
        """Back-propagate a loss of a network from `parallel`; gradients are averaged over ranks.

        Raises:
            RankLostError: another rank has ended.
        """
        if self.size == 1:
            loss.backward()  # type: ignore[no-untyped-call]
            return
        with _collective():
            loss.backward()  # type: ignore[no-untyped-call]

    def parallel(self, network: nn.Module) -> nn.Module:
        """Wrap a network: copy rank 0's parameters to all ranks; `backward` then averages gradients."""
        if self.size == 1:
            return network
        device = next(network.parameters()).device
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=devices)

    def leave(self) -> None:
        """Leave the process group without waiting for the other ranks."""
        if self.size > 1:
            distributed.destroy_process_group()


ALONE = Ranks()


@contextlib.contextmanager
def _collective() -> Iterator[None]:
    """Convert errors of a collective call to `RankLostError`, except this rank's out-of-memory errors."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RankLostError(f"another rank of the learner has ended: {error}") from error
