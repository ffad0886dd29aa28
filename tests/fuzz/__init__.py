"""Generators of bad input, with what must hold whatever they make: thousands by night, a few of each in `make test`."""
