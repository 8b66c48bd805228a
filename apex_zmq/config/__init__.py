"""Settings: the typed tree, how it is loaded, and the checks across settings."""
