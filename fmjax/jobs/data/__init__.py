"""`fmjax data`: describe the data of a config before training."""
