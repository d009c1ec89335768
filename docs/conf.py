"""The site of the documents: Sphinx with furo and MyST. `make docs` builds it; warnings are errors.

Files of the tree that no page shows (sources, scripts, result files) become downloads.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from pygments.lexers.special import TextLexer
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import sjepa_fast  # noqa: E402

project = "sjepa_fast"
author = copyright = "The sjepa_fast authors"
version = release = sjepa_fast.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
# The index of the folder, which the navigation stands for here.
exclude_patterns = ["README.md"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
# GitHub, too, draws what stands between ```math and ```.
myst_fence_as_directive = ["math"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Docstrings are plain text with `names`, which are code here as they are in the documents.
default_role = "literal"

html_theme = "furo"
html_title = f"sjepa_fast {release}"
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}

# Documents of the tree that have a page here under another name.
PAGES = {
    "README": "index",
    "docs/README": "index",
    "kernels/README": "site/kernels",
    "CONTRIBUTING": "site/extend",
    "CHANGELOG": "site/changelog",
}


class LinksOutOfTheFolder(SphinxTransform):
    """Link to the page of a document that lies elsewhere, or to the document as a download."""

    # After parsing, and before links are resolved and downloads collected.
    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        """Change the links of one document."""
        for node in list(self.document.findall(addnodes.pending_xref)):
            link, _, part = str(node["reftarget"]).partition("#")
            if node["refdomain"] == "doc":
                path = ROOT / "docs" / f"{link}.md"
            elif (ROOT / link).is_file():
                # Of a file that lies at the root and is included here.
                path = ROOT / link
                node["refdomain"], node["reftargetid"] = "doc", part or None
            else:
                continue
            name = path.resolve().relative_to(ROOT).with_suffix("").as_posix()
            if name in PAGES or name.startswith("docs/"):
                node["reftarget"] = PAGES.get(name, name.removeprefix("docs/"))
            else:
                file = f"/../{path.resolve().relative_to(ROOT)}"
                download = addnodes.download_reference(reftarget=file, refdoc=self.env.docname)
                download.extend(node.children)
                node.replace_self(download)


def plain_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Docstrings are plain text: |x| is an absolute value, what is set in after a colon is code."""
    if what == "attribute":
        if lines[0].startswith("Alias for field number"):
            lines.clear()
        # Napoleon takes what stands before a colon in the first line for a type.
        lines.insert(0, "")
    code = False
    for i, line in enumerate(lines):
        indented = line.startswith("    ")
        if indented and i > 1 and not lines[i - 1] and lines[i - 2].endswith(":"):
            code, lines[i - 2] = True, f"{lines[i - 2]}:"
        elif line and not indented:
            code = False
        if not code:
            lines[i] = re.sub(r"([|*])", r"\\\1", line)


def setup(app: Sphinx) -> None:
    """Add what the documents of this tree need."""
    app.add_lexer("csv", TextLexer)
    app.add_transform(LinksOutOfTheFolder)
    # Before napoleon, which reads Google's sections.
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)
