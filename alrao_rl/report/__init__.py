"""The parts of ``python -m alrao_rl.report``, in the order in which one builds on the other.

``study`` (which runs, which methods), ``compare`` (their numbers), ``figures``, ``document`` (blocks, HTML and
Markdown), ``sections`` (what the report says).
"""
