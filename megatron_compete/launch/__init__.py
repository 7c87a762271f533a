"""How the ranks of a job come to run: recipe, environment, launchers, the CPU backend, and what they leave in the run folder."""
