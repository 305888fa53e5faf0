"""Learned columns beside landmarks as ranges of the certified solver's preconditioner."""
