"""Every link of a document to the tree leads somewhere, and to a heading that is there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.test_house import ROOT


def documents() -> list[Path]:
    """All Markdown of the tree, not that of environments and builds."""
    found = [path.relative_to(ROOT) for path in ROOT.rglob("*.md")]
    made = {"build", "dist", "runs", "stores", ".git"}
    kept = [p for p in found if not made & set(p.parts) and not p.parts[0].startswith(".venv")]
    return [ROOT / path for path in kept]


def prose(text: str) -> str:
    """Leave out blocks of code and code in lines."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S))


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub and the site give to headings."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(path: Path) -> list[str]:
    """Return the links of a document that lead nowhere."""
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, part = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (part and part not in anchors(target.read_text())):
            wrong.append(link)
    return wrong


def test_links_lead_somewhere() -> None:
    found = documents()
    assert len(found) > 25
    assert {str(p.relative_to(ROOT)): b for p in found if (b := broken(p))} == {}


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A title, here\n")
    text = "[a](other.md) [b](other.md#a-title-here) [c](other.md#none) [d](no.md) `[e](no.md)`"
    (tmp_path / "page.md").write_text(text)
    assert broken(tmp_path / "page.md") == ["other.md#none", "no.md"]
