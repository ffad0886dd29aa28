"""What sampling, training, certificates and memory cost, as ratios to transformers' own `generate`.

A package of its own, so that scripts of other benchmarks beside it stay scripts. ../run.py runs it,
docs/benchmarks.md says what came out.
"""
