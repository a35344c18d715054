"""What the challenge scores, on what, and in how long: a score's seconds are told against these."""

CHALLENGE_BYTES = 151_100_000
"""Of FineWeb's validation text, to four digits."""
CHALLENGE_DEVICES = 8
"""GPUs, H100."""
CHALLENGE_SECONDS = 600
"""Of evaluation at most, and of training before it."""
