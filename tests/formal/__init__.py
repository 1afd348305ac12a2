"""Proofs of control blocks; ``pytest -m formal``."""
