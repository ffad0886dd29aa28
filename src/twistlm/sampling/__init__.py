"""σ ∝ p₀φ and ways to sample it: targets, proposals, resampling, SMC, exact samples."""
