"""The site: the README, these guides, the benchmarks' results and the docstrings. `make docs` builds it strictly."""

from pathlib import Path
from typing import Any

import llm4msr.pipeline  # noqa: F401 - before autodoc sets TYPE_CHECKING, with which FastAPI cannot be imported

project = html_title = "llm4msr"
html_theme = "furo"
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "cluster/*.md", "benchmarks/**.md"]
exclude_patterns = [".*", "runs", "site", "data", "build", "tests"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.mermaid"]
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
autodoc_typehints = "description"
autodoc_class_signature = "separated"
html_show_copyright = html_copy_source = False


def setup(app: Any) -> None:
    """Attributes' docstrings stay as they are: napoleon takes what stands before a colon for a type.

    Pictures of a run are shown where docs/pictures.py has made some.
    """
    kept: dict[str, list[str]] = {}

    def keep(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
        kept[name] = list(lines)

    def restore(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
        if what in ("attribute", "property"):
            lines[:] = kept[name]

    def with_pictures(app: Any, name: str, source: list[str]) -> None:
        if name == root_doc and (Path(__file__).parent / "pictures" / "index.md").exists():
            source[0] = source[0].replace("\nranker\n", "\nranker\npictures/index\n")

    app.connect("source-read", with_pictures)
    app.connect("autodoc-process-docstring", keep, priority=1)
    app.connect("autodoc-process-docstring", restore, priority=900)
