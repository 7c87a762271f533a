"""Studies: a grid of recipes and seeds trained as ordinary jobs, and the tables and figures made of their logs."""
