"""Makes the training set of the generators: datasets -> fine-tuning tasks -> a store of weights. Knows nothing of generators."""
