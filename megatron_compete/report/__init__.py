"""Figures and reports from a run's logs."""
