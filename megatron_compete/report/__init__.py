"""Pages, charts and figures of runs."""
