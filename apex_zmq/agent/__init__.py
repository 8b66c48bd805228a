"""Ape-X DQN without sockets: networks, losses, n-step returns, exploration, importance weights, gradient steps."""
