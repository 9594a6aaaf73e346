"""One model with hooks: what a run is asked, runs, and what they give back."""
