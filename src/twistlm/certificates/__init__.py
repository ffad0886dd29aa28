"""What is known of a sampler: bounds on log Z, KLs in both directions, probabilities of rare events."""
