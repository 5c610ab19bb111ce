"""`fmjax evaluate` and `fmjax likelihood`: measuring a run against its data."""
