"""The ranks of a learner: the processes that torchrun has started (torch.distributed), or a single one."""

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
    """Another rank has ended, so this one cannot go on; torchrun restarts all of them."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the ranks of its learner.

    Collective calls: `share`, `gather`, `mean` and `backward` return once all ranks have called them; a single rank
    returns at once.

    rank: number of this process, 0 to size - 1.
    size: number of ranks, R.
    local_rank: number of this process on its host, which is also that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls, environ: Mapping[str, str] = os.environ) -> Ranks:
        """Join the process group that torchrun's environment describes; without WORLD_SIZE, a single rank.

        Raises:
            ConfigError: WORLD_SIZE is set and another of torchrun's variables is not.
        """
        size = int(environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environ]
        if missing:
            raise ConfigError(f"WORLD_SIZE is {size} and {missing[0]} is not set; start the learner with torchrun")
        on_one_host = environ.get("LOCAL_WORLD_SIZE") == environ["WORLD_SIZE"]
        if on_one_host:
            # gloo need not be reachable from other hosts, and the host's name need not resolve.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        # While a rank waits for one that never arrives, torchrun's SIGTERM must end it.
        handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
        store, rank, _ = next(rendezvous("env://"))
        if on_one_host:
            # torchrun's store outlives a restart and still holds the ranks' former addresses (pytorch #135712). Over
            # several hosts a prefix would not work: each host counts restarts by itself.
            store = PrefixStore(environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
        signal.signal(signal.SIGTERM, handler)
        return cls(rank, size, int(environ["LOCAL_RANK"]))

    def share(self, value: Any) -> Any:
        """Broadcast rank 0's value, which JSON must be able to hold; the values of other ranks are ignored.

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
        """All ranks' rows by rank, [R]; each row has shape [] and the same structured dtype.

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
        """The mean over ranks, bit for bit equal on all of them.

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
        """Back-propagate a loss of a network that `parallel` returned; gradients become their means over ranks.

        Raises:
            RankLostError: another rank has ended.
        """
        if self.size == 1:
            loss.backward()  # type: ignore[no-untyped-call]
            return
        with _collective():
            loss.backward()  # type: ignore[no-untyped-call]

    def parallel(self, network: nn.Module) -> nn.Module:
        """Wrap a network: all ranks take rank 0's parameters, and `backward` averages gradients over ranks."""
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
    """Turn the error of a collective call into `RankLostError`; running out of memory is this rank's own."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RankLostError(f"another rank of the learner has ended: {error}") from error
