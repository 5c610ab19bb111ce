"""`fmjax sample`: draw samples from a run."""
