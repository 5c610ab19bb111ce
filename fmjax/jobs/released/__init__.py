"""`fmjax generate`, `encode`, `export` and `compare FOLDER PROMPT`: released models."""
