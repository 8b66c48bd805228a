"""The processes of a run: each a loop that reads top to bottom."""
