"""ARCHITECTURE.md shows the package as it is: arrows are imports, the table has every room, all files exist."""

import ast
import re

from tests.support.experiments import ROOT

PACKAGE = ROOT / "llm4msr"
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
ROOMS = {place.name for place in PACKAGE.iterdir() if (place / "__init__.py").exists()} | {"pipeline"}
BASICS = {"errors", "text", "schema", "arrays", "progress"}


def room_of(module: str) -> str:
    name = module.split(".")[1]
    return "basics" if name in BASICS else name


def imports() -> set[tuple[str, str]]:
    """Pairs of rooms, the first of which imports the second."""
    pairs = set()
    for file in PACKAGE.rglob("*.py"):
        room = room_of(".".join(file.relative_to(ROOT).with_suffix("").parts))
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if modules == ["llm4msr"] and isinstance(node, ast.ImportFrom):
                modules = [f"llm4msr.{alias.name}" for alias in node.names]
            pairs |= {(room, room_of(module)) for module in modules if module.startswith("llm4msr.")}
    drawn = {*ROOMS, "basics"}
    return {(above, below) for above, below in pairs if above != below and {above, below} <= drawn}


def arrows() -> set[tuple[str, str]]:
    (picture,) = re.findall(r"```mermaid\n(.*?)```", TEXT, re.DOTALL)
    pairs = set()
    for line in re.sub(r"\[.*?\]", "", picture).splitlines():
        if "-->" in line:
            left, right = (side.split("&") for side in line.split("-->"))
            pairs |= {(above.strip(), below.strip()) for above in left for below in right}
    return pairs


def reachable(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    closed = set(pairs)
    while more := {(a, d) for a, b in closed for c, d in pairs if b == c} - closed:
        closed |= more
    return closed


def test_every_arrow_of_the_picture_is_an_import() -> None:
    assert arrows() - imports() == set()


def test_every_import_between_rooms_follows_the_arrows() -> None:
    assert imports() - reachable(arrows()) == set()


def test_the_table_has_every_room() -> None:
    rows = re.findall(r"^\| `([\w.]+)/?` \|", TEXT, re.MULTILINE)
    assert {row.removesuffix(".py") for row in rows} == ROOMS


def test_every_file_and_folder_that_it_names_exists() -> None:
    files = re.findall(r"`([\w/.]+\.(?:py|json|j2|toml))`", TEXT)
    folders = re.findall(r"`([\w/]+)/`", TEXT)
    assert len(files) > 40
    known = {f"/{place.name}" for place in ROOT.iterdir()} | {"/manifest.json"}
    known |= {f"/{place.relative_to(PACKAGE)}" for place in PACKAGE.rglob("*")}
    missing = [name for name in files if f"/{name}" not in known]
    missing += [name for name in folders if not any(place.endswith(f"/{name}") for place in known)]
    assert missing == []
