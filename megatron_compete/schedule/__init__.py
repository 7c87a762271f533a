"""Which layers compete at which step: one table for the whole job, on every rank the same, without communication."""

from megatron_compete.schedule.table import CompetitionSchedule

__all__ = ["CompetitionSchedule"]
