"""The directory of a run: its lock and layout, checkpoints, episodes, atomic files."""
