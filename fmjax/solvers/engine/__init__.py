"""Solving with Diffrax: batched vector fields, exact evaluation counts, adjoints."""
