"""Learning a twist: one loop, losses (one file each), and sources of samples."""
