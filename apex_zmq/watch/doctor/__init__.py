"""The checks of bin/apex-doctor: of a host before a run, and of a live run."""
