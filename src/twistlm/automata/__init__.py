"""Finite automata: over the bytes of a text (`automaton`), and over the tokens of a model (`tokens`)."""
