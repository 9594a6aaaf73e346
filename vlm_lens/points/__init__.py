"""Where activations live and what they are called: sites, the table of points, sizes of a model."""
