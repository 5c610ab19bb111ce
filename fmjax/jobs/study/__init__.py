"""`fmjax study`: train several configs and measure their samples in the same way."""
