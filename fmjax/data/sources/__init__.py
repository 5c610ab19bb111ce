"""Data sets: one module per source of examples."""
