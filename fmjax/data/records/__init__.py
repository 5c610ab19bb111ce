"""Data sets on disk as ArrayRecord shards with a manifest."""
