"""The programs under `bin/`: options, start-up, logs, and the launcher of a whole run."""
