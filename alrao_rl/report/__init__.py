"""The parts of ``python -m alrao_rl.report``, each building on those before it.

``study`` (which runs, which methods), ``compare`` (their numbers), ``figures``, ``document`` (blocks, HTML and
Markdown), ``sections`` (what the report says).
"""
