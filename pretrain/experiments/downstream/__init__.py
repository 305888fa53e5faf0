"""What RangeFormer is worth where the paper uses it: CG warm starts, randomised low rank, Gaussian process learning.

Every part counts what the network spends and stands beside what needs no learning; see the modules' texts.
"""
