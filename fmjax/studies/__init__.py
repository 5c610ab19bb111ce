"""Whole jobs on a run folder: train, sample, compare, evaluate, report."""
