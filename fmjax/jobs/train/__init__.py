"""`fmjax train` and `fmjax reflow`: train a config into a run folder."""
