"""A score that needs no trust: what the challenge asks of one, tried on the scorer that gave it."""
