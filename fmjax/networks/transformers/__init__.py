"""Transformers on image patches: DiT, and the text-to-image networks MM-DiT (SD3) and FLUX."""
