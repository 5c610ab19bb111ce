"""Run folders: their files, and loading a config from a Python file."""
