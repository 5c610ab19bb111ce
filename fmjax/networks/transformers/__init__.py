"""Transformers on image patches: DiT, and MM-DiT (SD3) and FLUX, which also take text tokens."""
