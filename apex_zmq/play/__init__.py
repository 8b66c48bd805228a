"""Playing checkpoints: evaluation, viewing, windows and films."""
