"""What a run survives: stops, failed saves, damage, stuck ranks, another layout; and how it tells of it."""
