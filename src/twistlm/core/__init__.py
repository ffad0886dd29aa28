"""The ground: arithmetic, randomness, estimates with intervals, files, errors. Knows nothing of language models."""
