"""`fmjax plan`: compile training or sampling for devices that are not present."""
