"""Transformers: DiT on image patches, on sequences, and on text and images (MM-DiT, FLUX)."""
