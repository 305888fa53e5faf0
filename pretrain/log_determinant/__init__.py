"""Pretraining of the log-determinant tail: systems, their cached evidence, training and evaluation."""
