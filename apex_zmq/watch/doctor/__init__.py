"""Checks of a host before a run, and of a run before it is blamed: what bin/apex-doctor says."""
