"""Runs, sweeps and experiments, and the folders that keep them."""
