"""What a generator keeps of its zoo, against the gates that a bundle must pass and against plain compression."""
