"""Data sets, one module per data source."""
