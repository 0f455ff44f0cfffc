"""Training: recipes, the run folder, the loop, evaluation, trained networks."""
