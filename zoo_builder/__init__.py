"""Makes the training set of the generators: datasets -> tasks -> a store of weights. Knows no generator."""
