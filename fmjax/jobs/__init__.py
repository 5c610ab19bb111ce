"""Whole jobs: one subpackage per command or group of commands."""
