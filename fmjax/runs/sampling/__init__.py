"""Sample from a run: conditions, source points, batches and files."""
