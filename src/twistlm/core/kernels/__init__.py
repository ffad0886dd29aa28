"""Arithmetic in which the time goes: draws, packed products, sums over the vocabulary, threads."""
