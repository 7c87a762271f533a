"""Where a job runs: the CPU stand-in, and what the launcher put into the environment."""
