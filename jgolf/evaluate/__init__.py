"""Scoring: bits per byte, sliding windows, samples."""
