"""Ape-X DQN (Horgan et al. 2018) as independent processes over ZeroMQ."""

__version__ = "0.1.0"
