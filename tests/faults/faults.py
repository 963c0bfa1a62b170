"""All faults, in the order of the table."""

from faults import damage, disk, fuzz, inputs, kill, payloads, resume, sweeps, values

MODULES = (kill, disk, damage, values, sweeps, payloads, inputs, resume, fuzz)
FAULTS = [fault for module in MODULES for fault in module.FAULTS]
