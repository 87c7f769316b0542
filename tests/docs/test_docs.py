"""What the documents show works: commands parse, configs load, code imports, links and named files exist."""

import ast
import importlib
import itertools
import json
import pkgutil
import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from llm4msr import Config, RankRequest, load
from llm4msr.cli.main import app
from tests.support.documents import DOCUMENTS, FENCE, blocks, shell_lines
from tests.support.experiments import ROOT

CONFIGS = sorted((ROOT / "jobs" / "configs").glob("*.toml"))
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
TREE_NAME = re.compile(r"[\w.-]+(/|\.\w+)(, [\w.-]+(/|\.\w+))*")


class Command(NamedTuple):
    """`llm4msr VERB ...` or `python -m jobs.MODULE ...` as a document shows it."""

    document: Path
    program: str
    verb: str
    arguments: list[str]

    @property
    def config(self) -> str:
        return next((word for word in self.arguments if word.endswith(".toml")), "")

    @property
    def overrides(self) -> list[str]:
        return [value for flag, value in zip(self.arguments, self.arguments[1:], strict=False) if flag == "--set"]


def commands() -> list[Command]:
    found = []
    for document in DOCUMENTS:
        for words in shell_lines(document):
            for at, word in enumerate(words[:-1]):
                if Path(word).name == "llm4msr":
                    found.append(Command(document, "llm4msr", words[at + 1], words[at + 2 :]))
                elif word == "-m" and words[at + 1].startswith("jobs."):
                    found.append(Command(document, "jobs", words[at + 1].removeprefix("jobs."), words[at + 2 :]))
    return found


def shown_tables() -> list[tuple[Path, dict[str, Any]]]:
    return [(document, tomllib.loads(text)) for document in DOCUMENTS for text in blocks(document, "toml")]


def test_the_readme_shows_commands() -> None:
    readme = [command for command in commands() if command.document == ROOT / "README.md"]
    assert {"run", "serve"} <= {command.verb for command in readme if command.program == "llm4msr"}


@pytest.mark.parametrize("command", commands(), ids=lambda c: f"{c.document.parent.name}-{c.verb}")
def test_commands_parse(command: Command) -> None:
    if command.program == "jobs":
        assert (ROOT / "jobs" / f"{command.verb}.py").exists()
    known: Any = COMMANDS.get(command.verb)
    words = [*itertools.takewhile(lambda word: word != ">", command.arguments)]
    if words and hasattr(known, "commands"):  # a group, such as `knowledge ls`
        known = known.commands[words.pop(0)]
    if known is None:  # an option of the program, or the quickstart's own parser
        assert command.verb in {"--help", "--install-completion", "quickstart"} or command.program == "jobs"
    elif words:  # more than a verb that a sentence names
        context = known.make_context(known.name, words)
        assert context.params["files" if known.name == "init" else "config"]


@pytest.mark.parametrize(
    "command", [c for c in commands() if c.config], ids=lambda c: f"{c.document.parent.name}-{c.verb}-{c.config}"
)
def test_configs_in_commands_load(command: Command, tmp_path: Path) -> None:
    """Either a file of the repository, or one that the document itself shows: NAME.toml with `name = "NAME"`."""
    file = ROOT / command.config
    if not file.exists():
        shown = {table.get("name"): table for _, table in shown_tables()}
        assert Path(command.config).stem in shown, f"{command.config} is neither in the repository nor shown"
        text = next(
            text
            for document in DOCUMENTS
            for text in blocks(document, "toml")
            if tomllib.loads(text).get("name") == Path(command.config).stem
        )
        file = tmp_path / "shown.toml"
        file.write_text(text)
    load(str(file), command.overrides)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_shipped_configs_load(file: Path) -> None:
    assert load(str(file)).name


@pytest.mark.parametrize(("document", "table"), shown_tables(), ids=lambda value: getattr(value, "stem", "table"))
def test_toml_in_documents_is_a_config(document: Path, table: dict[str, Any]) -> None:
    needed = {"name": "shown", "source": {"kind": "table", "path": "somewhere"}}
    Config.model_validate(needed | table)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_python_in_documents_imports_what_exists(document: Path) -> None:
    for text in blocks(document, "python", "py"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("llm4msr", "jobs"):
                module = importlib.import_module(str(node.module))
                for name in node.names:
                    assert hasattr(module, name.name), f"{document.name}: {node.module} has no {name.name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_requests_in_documents_are_valid(document: Path) -> None:
    for words in shell_lines(document):
        if words[0] == "curl" and any(word.endswith("/v1/rank") for word in words):
            RankRequest.model_validate(json.loads(words[words.index("-d") + 1]))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_make_targets_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for words in shell_lines(document):
        if words[0] == "make":
            for target in [word for word in words[1:] if "=" not in word]:
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    prose = FENCE.sub("", document.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not target.startswith(("http://", "https://", "#", "mailto:")):
            assert (document.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_files_named_in_prose_exist(document: Path) -> None:
    prose = FENCE.sub("", document.read_text())
    for span in re.findall(r"`([\w./-]+/[\w./-]*)`", prose):
        if (ROOT / span.split("/")[0]).is_dir() and not span.startswith(("/", "runs/")):  # "/v1/" is a route
            assert (ROOT / span).exists(), span


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_import_paths_that_are_named_exist(document: Path) -> None:
    """But for those in all but the last cell of a table in the changelog, which tells what they were."""
    text = document.read_text()
    if document.name == "CHANGELOG.md":
        text = re.sub(r"^\|.*\|(?=.*\|$)", "", text, flags=re.MULTILINE)
    for path in re.findall(r"(?<![\w/.-])llm4msr(?:\.[A-Za-z_]\w*)+(?::\w+)?", text):
        pkgutil.resolve_name(path)


def tree_entries(text: str) -> list[tuple[list[Path], str]]:
    """Places where each name in a drawn tree may lie: its parent folder, or the folder on the same line."""
    found = []
    folder = Path()
    for line in text.splitlines():
        plain = re.sub(r"[│├└─]", " ", line)
        inside = plain.startswith(" ")
        beside = Path()
        for cell in re.split(r"\s{2,}", plain.strip()):
            if TREE_NAME.fullmatch(cell):
                parent = folder if inside else Path()
                found += [([parent, parent / beside], name) for name in cell.split(", ")]
                if cell.endswith("/"):
                    beside = Path(cell)
        if not inside and plain.strip():
            folder = Path(plain.split()[0])
    return found


def test_the_tree_names_only_what_exists() -> None:
    trees = [text for text in blocks(ROOT / "README.md", "", "text") if re.match(r"[\w-]+/", text)]
    entries = [entry for tree in trees for entry in tree_entries(tree)]
    assert len(entries) > 10
    missing = [name for places, name in entries if not any((ROOT / place / name).exists() for place in places)]
    assert not missing


def test_llms_txt_names_every_guide_and_nothing_that_is_not_there() -> None:
    text = (ROOT / "docs" / "llms.txt").read_text()
    named = {(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\(([^)]+)\)", text)}
    assert {file for file in named if not file.exists()} == set()
    guides = {file.resolve() for file in (ROOT / "docs").glob("*.md")} - {(ROOT / "docs" / "index.md").resolve()}
    assert guides <= named
