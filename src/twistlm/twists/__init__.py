"""Twists: learned estimates of log E_p₀[φ | prefix]. Each builder is registered and takes the base model."""
