"""Ranks as far as one process shows them; several are run in `tests/system/test_ranks.py`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apex_zmq.agent.ranks import ALONE, Ranks
from apex_zmq.agent.trainer import choose_device
from apex_zmq.errors import ConfigError


def test_without_torchrun_there_is_a_single_rank() -> None:
    assert Ranks.join({}) == Ranks.join({"WORLD_SIZE": "1", "RANK": "0"}) == Ranks()


def test_single_rank_collectives_return_their_input() -> None:
    assert ALONE.share({"run": [1, "two"]}) == {"run": [1, "two"]}
    row = np.array((True, 7), np.dtype([("ready", "?"), ("shard", "i8")]))
    assert ALONE.gather(row).tolist() == [(True, 7)]
    assert ALONE.gather(row).dtype == row.dtype
    weight = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
    loss = weight.square().sum()
    assert ALONE.mean(loss) is loss
    ALONE.backward(loss)
    assert weight.grad is not None
    assert weight.grad.tolist() == [4.0, 6.0]
    network = torch.nn.Linear(2, 1)
    assert ALONE.parallel(network) is network
    ALONE.leave()


def test_each_rank_gets_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto", local_rank=1) == torch.device("cuda:1")
    assert choose_device("cpu", local_rank=2) == torch.device("cpu")
    with pytest.raises(ConfigError, match="no GPU for local rank 2; start torchrun with --nproc-per-node 2 at most"):
        choose_device("auto", local_rank=2)
