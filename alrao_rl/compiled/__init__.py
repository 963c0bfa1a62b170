"""The method's inner loops in compiled code: the same numbers, to rounding, as the operations on tensors beside it.

On small networks most of an update is the time that torch takes to start operations.
"""
