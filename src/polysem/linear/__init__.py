"""First-order theory of pushes: what the gradient predicts, of what parts an observed effect is made, how much
of interference the readout compensates, and other measures of interference. Models and arrays in, arrays out."""
