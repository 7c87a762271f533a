"""What a job costs before it runs: rules, memory, traffic, operations and time, from its recipe alone."""
