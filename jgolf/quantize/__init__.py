"""Rounding of weights: what an artifact stores, and what late QAT trains on."""
