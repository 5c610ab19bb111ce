"""Layers that several networks share, and the conversion of Flax modules to pure functions."""
