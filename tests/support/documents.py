"""The Markdown documents of the repository, and the code that they show."""

import re
import shlex
from pathlib import Path

from tests.support.experiments import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(document: Path, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(document.read_text()) if language in languages]


def shell_lines(document: Path) -> list[list[str]]:
    """The words of each command in shell blocks and, where it is one of ours, in inline code."""
    text = "\n".join(blocks(document, "bash", "sh", "shell", "console"))
    lines = [line.removeprefix("$ ") for line in text.replace("\\\n", " ").splitlines()]
    prose = FENCE.sub("", document.read_text())
    lines += [span for span in re.findall(r"`([^`\n]+)`", prose) if span.startswith(("llm4msr ", "make "))]
    return [words for line in lines if (words := shlex.split(line, comments=True))]
