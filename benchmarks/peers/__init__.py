"""Programs that run with the peers' own packages (`make bench-peers`) and print one JSON object."""
