"""What the page of `llm4msr explain` shows, one module per section, computed without Ray.

Nothing is scored again but the lists of single users: `rows` are the test rows as `evaluate` published them. A section
is a dataclass of plain numbers: `gains` (the verdict, "Who gains"), `models` ("The models side by side"), `scenarios`,
`users`, `cases` ("Single users"). `build` calls them in this order, `page` renders `report.html.j2`.

To add a section, write a module with a dataclass and the function that computes it, and its `tables()` if it has files
beside the page; add it to `page.Sections` and to `build.build`; then draw it in `report.html.j2`, where it needs a
`<section>` and a link in the `<nav>`.
"""
