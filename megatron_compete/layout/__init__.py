"""A parallel layout's rules: what Megatron would refuse minutes into a job, from its arguments alone."""
