"""`fmjax sample`: generate samples from a run."""
