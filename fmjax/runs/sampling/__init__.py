"""Sampling a run: its conditions, source points and batches."""
