"""Optimizers: Muon, AdamW, the partition between them, and the schedule."""
