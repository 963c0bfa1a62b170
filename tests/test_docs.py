"""The pages: what they point to is there and says something."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


@pytest.mark.slow
def test_the_site_is_built_and_asks_no_network(tmp_path):
    """Warnings are errors: a link within it that leads nowhere, a docstring that cannot be read."""
    site = tmp_path / "site"
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", "docs", ".", str(site)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]+src=\"([^\"]+)|<link[^>]+href=\"([^\"]+)", text)
        assert not [one for one in loaded if re.match("(https?:)?//", "".join(one))], page
    api = (site / "docs" / "api.html").read_text(encoding="utf-8")
    for name in ("AlraoPolicy", "AlraoConfig", "convert", "load_results", "AveragingRule", "HeadwiseTensor"):
        assert f"{name}</span>" in api, name


def test_the_network_of_its_page_trains():
    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "networks.md").read_text(encoding="utf-8"), re.DOTALL
    )
    names = {}
    exec(block, names)
    x, network, plain = names["x"], names["network"], names["plain"]
    before = -math.log(1 / 3)
    with torch.no_grad():
        assert torch.nn.functional.cross_entropy(network(x), names["y"]) < before
        torch.testing.assert_close(plain(x).log_softmax(-1), network(x), rtol=1e-4, atol=1e-5)
