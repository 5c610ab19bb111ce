"""`fmjax invert`: map data to noise and back."""
