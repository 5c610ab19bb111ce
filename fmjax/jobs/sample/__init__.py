"""`fmjax sample`."""
