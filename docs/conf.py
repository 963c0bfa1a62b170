"""The site: ``make docs``. Its source is the whole checkout, so that links between pages work here and on GitHub."""

import importlib.metadata

project = "alrao-rl"
author = "the alrao-rl developers"
release = version = importlib.metadata.version("alrao-rl")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "results/*.md", "results/*/*.md"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# TOML, and what a terminal shows, are no languages that every version of the highlighter knows.
suppress_warnings = ["misc.highlighting_failure"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_google_docstring = True

html_theme = "furo"
html_title = f"alrao-rl {release}"
html_show_sphinx = False
html_copy_source = False
