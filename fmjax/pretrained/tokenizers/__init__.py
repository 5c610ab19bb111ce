"""Tokenizers of released models."""
