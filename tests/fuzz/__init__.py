"""Generators of bad input, with what must hold whatever they make: `make fuzz`, and a part of each in `make test`."""
