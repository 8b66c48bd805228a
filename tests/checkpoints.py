"""For tests of what plays checkpoints: networks that have learned nothing, and a look into the videos made."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from apex_zmq.agent.networks import make_network
from apex_zmq.config import loading
from apex_zmq.config.settings import Config, to_tree
from apex_zmq.envs.make import env_spec
from apex_zmq.rundir.checkpoint import Checkpoint
from apex_zmq.types import UInt8s

CARTPOLE = loading.replace(Config(), {"env.id": "CartPole-v1", "env.frame_stack": 1, "agent.network": "mlp"})
MARIO = loading.replace(
    Config(),
    {
        "env.actions": [["right"], ["right", "A"]],
        "env.frame_height": 48,
        "env.frame_width": 60,
        "env.max_episode_steps": 12,
        "agent.network": "small",
    },
)


def untrained(config: Config, seed: int = 0) -> Checkpoint:
    spec = env_spec(config.env)
    return Checkpoint(
        tensors={"online": make_network(config.agent, spec.frame, spec.num_actions, seed).state_dict()},
        counters={"updates": 1},
        config=to_tree(config),
        run_id="run",
        learner_incarnation=1,
        best_score=None,
        experience="",
        network="",
    )


def read_video(path: Path) -> tuple[UInt8s, float]:
    """The pictures of a video file, uint8 [N, H, W, 3], and their rate per second, as ffmpeg says."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    ran = subprocess.run(command, capture_output=True, check=True)
    found = re.search(rb"rawvideo.* (\d+)x(\d+).* ([\d.]+) fps", ran.stderr)
    assert found is not None, ran.stderr
    columns, rows, rate = (float(each) for each in found.groups())
    return np.frombuffer(ran.stdout, np.uint8).reshape(-1, int(rows), int(columns), 3), rate
