from __future__ import annotations

from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.watch.archive import Buckets
from apex_zmq.watch.tensorboard import Board

CARTPOLE = loading.replace(Config(), {"env.id": "CartPole-v1"})


def read(directory: Path) -> EventAccumulator:
    events = EventAccumulator(str(directory))
    events.Reload()
    return events


def curve(directory: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(directory).Scalars(tag)]


def test_a_board_writes_events_that_tensorboard_reads(tmp_path: Path) -> None:
    board = Board(tmp_path, loading.replace(Config(), {"run.seed": 12345}), start=0)
    board.write({"train/loss": 0.5, "rollout/episodes": 3}, {}, decisions=10)
    board.write({"train/loss": 0.25}, {}, decisions=20)
    assert curve(tmp_path, "train/loss") == [(10, 0.5), (20, 0.25)]  # before it is closed
    board.close()
    assert curve(tmp_path, "rollout/episodes") == [(10, 3.0)]
    (text,) = read(tmp_path).Tensors("config/text_summary")
    assert b"seed: 12345" in text.tensor_proto.string_val[0]


def test_a_resumed_run_hides_points_beyond_its_checkpoint(tmp_path: Path) -> None:
    board = Board(tmp_path, Config(), start=0)
    for decisions in (10, 20, 30, 40):
        board.write({"train/loss": 1.0}, {}, decisions)
    board.close()
    board = Board(tmp_path, Config(), start=25)
    board.write({"train/loss": 2.0}, {}, decisions=28)
    board.write({"train/loss": 2.0}, {}, decisions=35)
    board.close()
    assert curve(tmp_path, "train/loss") == [(10, 1.0), (20, 1.0), (28, 2.0), (35, 2.0)]
    assert charts(tmp_path)  # the layout is not hidden with them
    assert hyper_parameters(tmp_path)


def test_a_run_resumed_at_decision_0_hides_all_points(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        board = Board(tmp_path, Config(), start=0)
        board.write({"train/loss": loss}, {}, decisions=round(10 * loss))
        board.close()
    assert curve(tmp_path, "train/loss") == [(20, 2.0)]


def test_a_histogram_counts_every_value(tmp_path: Path) -> None:
    board = Board(tmp_path, Config(), start=0)
    values = np.concatenate([np.full(300, 0.5, np.float32), np.full(100, 8.0, np.float32)])
    board.write({}, {"train/td_error": values, "rollout/end_x/1-1": np.array([722])}, decisions=10)
    board.close()
    events = read(tmp_path)
    (histogram,) = events.Histograms("train/td_error")
    assert histogram.step == 10
    value = histogram.histogram_value
    assert (value.num, value.min, value.max, value.sum) == (400, 0.5, 8.0, 950.0)
    assert sum(count for limit, count in zip(value.bucket_limit, value.bucket, strict=True) if limit < 4) == 300
    (alone,) = events.Histograms("rollout/end_x/1-1")
    assert (alone.histogram_value.num, alone.histogram_value.max) == (1, 722)


def test_a_histogram_of_buckets_is_written_as_it_is(tmp_path: Path) -> None:
    board = Board(tmp_path, Config(), start=0)
    board.write({}, {"restarts/ends/1-1": Buckets(128.0, (3, 0, 1))}, decisions=10)
    board.close()
    (histogram,) = read(tmp_path).Histograms("restarts/ends/1-1")
    value = histogram.histogram_value
    assert (histogram.step, value.num, value.min, value.max) == (10, 4, 0, 384)
    assert (value.sum, value.sum_squares) == (3 * 64 + 320, 3 * 64**2 + 320**2)
    assert list(zip(value.bucket_limit, value.bucket, strict=True)) == [(128, 3), (256, 0), (384, 1)]


def charts(directory: Path) -> dict[str, dict[str, list[str]]]:
    """Patterns of tags by category and chart, as TensorBoard's page "Custom Scalars" reads them."""
    *_, event = read(directory).Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    return {
        category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
        for category in layout.category
    }


def test_the_layout_starts_with_the_learning_curves(tmp_path: Path) -> None:
    Board(tmp_path / "mario", Config(), start=0).close()
    Board(tmp_path / "cartpole", CARTPOLE, start=0).close()
    first, *_ = charts(tmp_path / "mario").values()
    assert list(first) == ["return", "clear rate", "loss", "Q", "samples per insert", "rates, 1/s"]
    assert first["return"] == ["rollout/ep_rew_mean$", "rollout/low_epsilon/ep_rew_mean$", "eval/mean_reward$"]
    first, *_ = charts(tmp_path / "cartpole").values()
    assert list(first) == ["return", "loss", "Q", "samples per insert", "rates, 1/s"]


def hyper_parameters(directory: Path) -> dict[str, HParamsPluginData]:
    contents = read(directory).PluginTagToContent("hparams")
    return {tag: HParamsPluginData.FromString(content) for tag, content in contents.items()}


def test_hyper_parameters_are_written_to_the_run_itself(tmp_path: Path) -> None:
    board = Board(tmp_path, loading.replace(Config(), {"learner.batch_size": 96, "env.stages": ["1-1", "1-2"]}), 0)
    begun = hyper_parameters(tmp_path)
    assert not any(data.HasField("session_end_info") for data in begun.values())
    board.close()
    assert [path for path in tmp_path.rglob("*") if path.is_dir()] == []
    (experiment,) = (data.experiment for data in begun.values() if data.HasField("experiment"))
    assert {"rollout/ep_rew_mean", "rollout/low_epsilon/clear_rate"} <= {
        metric.name.tag for metric in experiment.metric_infos
    }
    (start,) = (data.session_start_info for data in begun.values() if data.HasField("session_start_info"))
    assert start.hparams["learner.batch_size"].number_value == 96
    assert start.hparams["agent.network"].string_value == Config().agent.network
    assert start.hparams["env.stages"].string_value == '["1-1", "1-2"]'
    assert not any(name.startswith(("addresses.", "telemetry.", "run.max")) for name in start.hparams)
    assert any(data.HasField("session_end_info") for data in hyper_parameters(tmp_path).values())
