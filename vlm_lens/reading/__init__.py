"""What is read of a model: the cache of a run, many prompts, vectors."""
