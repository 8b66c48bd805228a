"""Make the README's film of all stages from the published models: python -m benchmarks.mosaic [FILE].

FILE (docs/images/game.gif) shows a tile per stage, a row per stage number and a column per world. A model plays noop
episodes until it clears its stage, at most `TRIES`; its tile then stands still until the longest play ends. The tile of
a stage without a model, or of one that fails, is gray. The first of `FITS` with which the file is small enough is used.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from apex_zmq.config import loading
from apex_zmq.envs.games import MARIO, stages
from apex_zmq.envs.make import make_lanes
from apex_zmq.play.player import Player
from apex_zmq.play.video import save_gif
from apex_zmq.rundir.checkpoint import load
from benchmarks.rows import ROOT
from benchmarks.runs import MODELS, model_of

FILM = ROOT / "docs/images/game.gif"
TILE = (80, 75)  # width, height: a third of the screen
GAP = 2  # pixels, right of and below each tile
TRIES, SEED = 20, 90_000
DECISIONS_PER_S = 15  # at `env.frame_skip` 4
MAX_BYTES = 3_000_000
FITS = ((2, 32), (3, 32), (3, 16), (4, 16), (5, 16), (6, 8))  # decisions per picture, colours


class Play(NamedTuple):
    """The best of a model's episodes: pictures of `TILE`, one per decision."""

    pictures: list[Image.Image]
    cleared: bool


def play(model: Path) -> Play:
    """Play a model until it clears its stage; of failures, the one that got furthest."""
    player = Player.of(load(model), "noop", SEED, render=True)
    best, furthest = Play([], False), -1.0
    try:
        for _ in range(TRIES):
            pictures, info = [], {}
            for moment in player.episode():
                pictures.append(Image.fromarray(player.lanes.render(0)).resize(TILE, Image.Resampling.BOX))
                info = dict(moment.info)
            if info["cleared"]:
                return Play(pictures, True)
            if info["max_x"] > furthest:
                best, furthest = Play(pictures, False), info["max_x"]
    finally:
        player.close()
    return best


def start(stage: str) -> Play:
    """The first screen of a stage."""
    env = loading.load(ROOT / "configs/mario.yaml", overrides=[f"env.stages=[{stage}]"]).env
    lanes = make_lanes(env, 1, SEED, render=True)
    lanes.reset(0)
    picture = Image.fromarray(lanes.render(0)).resize(TILE, Image.Resampling.BOX)
    lanes.close()
    return Play([picture], False)


def film(plays: Sequence[Play], stride: int, colours: int) -> bytes:
    """A GIF of the plays, four to a column, with every `stride`-th picture in real time."""
    length = max(len(each.pictures) for each in plays)
    width, height = TILE[0] + GAP, TILE[1] + GAP
    frames = []
    for moment in [*range(0, length, stride), length - 1]:
        frame = Image.new("RGB", (width * -(-len(plays) // 4), height * 4))
        for index, each in enumerate(plays):
            picture = each.pictures[min(moment, len(each.pictures) - 1)]
            if not each.cleared:
                picture = picture.convert("L").point(lambda value: value // 2)
            frame.paste(picture, (width * (index // 4), height * (index % 4)))
        frames.append(frame)
    palette = Image.fromarray(np.concatenate([np.array(frame) for frame in frames[:: len(frames) // 8 + 1]]))
    common = palette.quantize(colours)
    rate = DECISIONS_PER_S / stride
    file = io.BytesIO()
    save_gif(file, [frame.quantize(palette=common, dither=Image.Dither.NONE) for frame in frames], rate)
    return file.getvalue()


def main(path: Path, directory: Path = MODELS) -> None:
    models = {stage: model_of(f"game-{stage}", directory) for stage in stages(MARIO)}
    plays = [play(model) if model.is_file() else start(stage) for stage, model in models.items()]
    for stride, colours in FITS:
        made = film(plays, stride, colours)
        if len(made) <= MAX_BYTES:
            break
    else:
        sys.exit(f"{path} is not written: {len(made):,} bytes, more than {MAX_BYTES:,}; add a smaller row to FITS")
    path.write_bytes(made)
    cleared = sum(each.cleared for each in plays)
    print(f"{path}: {cleared} of {len(plays)} stages cleared, {len(made):,} bytes, {colours} colours")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FILM)
