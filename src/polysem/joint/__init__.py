"""Several pushes at once: what they do together, what that is known from, and how to choose them.

bench        directions on one prompt, at any strengths together
additivity   energies of interactions by order, exact or sampled; sizes and saturation
pairs        interactions of two pushes, their Hessian-vector forecast, hypotheses
layers       a push at one site and one at a later: live, and with the path between them cut
planner      strengths that reach wanted effects at least KL
run          the tables of `polysem joint`
"""
