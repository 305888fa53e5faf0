"""The RangeFormer paper's interventions, one switch at a time, from NumFormer to the operator mode.

    python -m pretrain.experiments.interventions --out results/interventions

"Understanding and Relaxing the Limitations of Transformers for Linear Algebra" (ICLR 2026). Every rung has the same
width and depth and sees as many matrices per step. trace, lambda_max and logdet share one model with three read-outs
and a sum of losses; solve has its own. Gaussian training data are symmetric Gaussian matrices for trace and lambda_max,
and G G' / n + 0.1 I for logdet and solve, because a Gaussian matrix may be as good as singular. In solve a ridge keeps
every condition number at 1e4 or below, in training and in the tests, Matrix Market's own matrices excepted.
"""
