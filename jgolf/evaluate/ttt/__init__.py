"""Score-first test-time training: every token is scored before anything learns from it."""
