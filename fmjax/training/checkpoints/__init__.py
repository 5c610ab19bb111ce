"""Checkpoints: writing, reading, and detecting damage and full disks."""
