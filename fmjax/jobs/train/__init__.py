"""`fmjax train` and `fmjax reflow`."""
