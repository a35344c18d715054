"""What runs wrote, read back: ours from their folders, others' from the challenge's logs."""

from jgolf.history.read import read_histories, read_history, sweep_rows
from jgolf.history.record import SCORE_KINDS, FinalScore, History

__all__ = ["SCORE_KINDS", "FinalScore", "History", "read_histories", "read_history", "sweep_rows"]
