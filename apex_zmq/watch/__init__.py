"""Watching a run: statistics, TensorBoard, Prometheus, apex-top and apex-doctor."""
