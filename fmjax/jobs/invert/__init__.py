"""`fmjax invert`: data to noise and back."""
