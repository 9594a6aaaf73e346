"""What experiments share: sources of vectors, scoring, controls, results."""
