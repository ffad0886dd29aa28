"""Exact samples of the target: how they are had, kept, and believed."""
