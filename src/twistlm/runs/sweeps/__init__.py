"""Every method with every seed on one experiment."""
