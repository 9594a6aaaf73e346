"""Scores: numbers on coordinates, the one form in which every method gives a number for a place."""

from vlm_lens.scores.scores import Scores

__all__ = ["Scores"]
