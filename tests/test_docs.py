"""The pages: what they point to is there and says something."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("findings/*.md")]
PAGES += [*ROOT.glob("results/*.md"), *ROOT.glob("results/*/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    assert text.strip()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            path = page.parent / target.partition("#")[0]
            assert path.is_dir() or path.stat().st_size, f"{target} is empty"


def test_readme_leads_to_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {f"docs/{page.name}" for page in ROOT.glob("docs/*.md")} <= set(re.findall(r"\]\(([^)\s]+)\)", text))
