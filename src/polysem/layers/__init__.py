"""Interference across layers: weights between features of different layers, and whether they act.

ends        what a feature writes, and what it reads: rows and columns, norms folded
coactivity  one corpus pass: co-firing, expected residual attribution
weights     virtual weights of all pairs, streamed; their joint histogram with co-firing
influence   what a push does later, and what taking a feature's own contribution away does
worth       effectiveness and helpfulness of an edge, in nats
hypotheses  X1 to X4 with their controls and chance
run         all of it for two dictionaries
splice      the model with its MLPs replaced by transcoders: what that costs
steer       pushing a transcoder's feature, written or seen, and the difference
graph       graphs of circuit-tracer and Neuronpedia, out and in
"""
