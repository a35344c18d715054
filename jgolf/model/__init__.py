"""The network, and the pure functions over its parameters."""
