"""`fmjax evaluate` and `fmjax likelihood`: compare a run with its data."""
