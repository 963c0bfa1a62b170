"""Faults injected for real, and the record of what came of them: ``make faults``."""
