"""``python -m gp_rangeformer.lab.guide``: the tables and figures of README and guide, from the stored result files.

Pages are written by hand; what stands between markers is not.
"""
