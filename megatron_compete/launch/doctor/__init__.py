"""What this environment can do: probes, findings and the report of `megatron-compete doctor`."""
