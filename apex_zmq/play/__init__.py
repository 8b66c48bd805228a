"""Playing checkpoints: evaluation, viewing, windows and videos."""
