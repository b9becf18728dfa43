"""What steering along a direction does besides what it is meant to: forecast, measured, and repaired.

directions   any direction: a feature, a difference of means, a file; and files that other tools read
push         directions on prompts at a KL or a coefficient, and everything that moves
linear       the same from one pass of gradients, for all features at once
measures     what was moved as numbers with intervals, against isotropic pushes of equal KL
forecast     side effects from weights and corpus alone, held out by feature; the screen test
repair       the direction that does the same with least collateral
public       per-feature tables of others
"""
