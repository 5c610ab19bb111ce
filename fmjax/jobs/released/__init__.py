"""Commands on released models: `fmjax generate`, `encode`, `export`, `compare FOLDER PROMPT`."""
