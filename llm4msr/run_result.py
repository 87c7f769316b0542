"""What a run has published, as Python and notebooks want it."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

from llm4msr.config import Config
from llm4msr.storage import StageOutput
from llm4msr.text import markdown, mask

if TYPE_CHECKING:
    import pandas as pd

    from llm4msr.bundle.ranker import Ranker

OVERALL = "(all)"
"""Stands for all scenarios together."""


class RunResult(Sequence[StageOutput]):
    """The outputs of a finished run in their order; a notebook shows the table, where things lie, and what comes next.

    Example:
        >>> from llm4msr import load, run
        >>> result = run(load("shop.toml"))          # doctest: +SKIP
        >>> result.metrics().loc[("both", "(all)")]  # doctest: +SKIP
        >>> result.ranker().rank(...)                # doctest: +SKIP
    """

    def __init__(self, config: Config, outputs: Sequence[StageOutput]):
        self.config, self._outputs = config, tuple(outputs)

    @overload
    def __getitem__(self, at: int) -> StageOutput: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[StageOutput]: ...
    def __getitem__(self, at: int | slice) -> StageOutput | Sequence[StageOutput]:
        return self._outputs[at]

    def __len__(self) -> int:
        return len(self._outputs)

    def one(self, stage: str) -> StageOutput:
        """The last output of a stage.

        Raises:
            KeyError: the run has none, as a run without knowledge has no `extract`.
        """
        for output in reversed(self._outputs):
            if output.manifest.stage == stage:
                return output
        raise KeyError(stage)

    @property
    def table(self) -> str:
        """What `evaluate` prints, as Markdown."""
        return self.one("evaluate").read("table.md").decode()

    @property
    def warnings(self) -> list[str]:
        """What any stage warned of."""
        return [line for output in self._outputs for line in output.manifest.info.get("warnings", [])]

    def metrics(self) -> "pd.DataFrame":
        """Means over seeds on the test rows: a row for each model or baseline and scenario, float64 for each metric.

        `(all)` stands for all scenarios together, and comes first. A column that ends in `_std` is the deviation over
        seeds.
        """
        import pandas as pd

        summary = self.one("evaluate").json("metrics.json")["summary"]
        rows = [
            ((model, place), _flat(values))
            for model, one in summary.items()
            for place, values in [(OVERALL, one["overall"]), *((p["scenario_id"], p) for p in one["scenarios"])]
        ]
        index = pd.MultiIndex.from_tuples([at for at, _ in rows], names=["model", "scenario"])
        return pd.DataFrame([values for _, values in rows], index=index)

    def predictions(self) -> Iterator["pd.DataFrame"]:
        """The test rows, partition by partition: user_id, item_id, scenario_id, label, person (a number for each user,
        those without a known id too), and a column of logits for each model, named by its variant and seed: `both-1`.
        """
        output = self.one("evaluate")
        for name in sorted(output.manifest.files):
            if name.startswith("predictions/"):
                yield output.table(name).to_pandas()

    def ranker(self) -> "Ranker":
        """The exported model, ready to rank in this process."""
        from llm4msr.bundle.ranker import Ranker

        return Ranker.load(str(self.one("export").folder))

    def _repr_markdown_(self) -> str:
        lines = [f"**{markdown(self.config.name)}** in `{mask(self.config.root)}`", "", self.table, ""]
        lines += [f"- {output.manifest.stage}: `{mask(str(output.folder))}`" for output in self._outputs]
        lines += [f"- warning: {markdown(line, 1000)}" for line in self.warnings]
        lines += ["", "`.metrics()` and `.predictions()` are DataFrames, and `.ranker()` ranks in this process."]
        lines += ["Next: `llm4msr.pipeline.explain(config)` writes the report, `llm4msr serve CONFIG` the endpoint."]
        return "\n".join(lines)


def _flat(place: dict[str, object]) -> dict[str, float | None]:
    """A place of `metrics.json` as columns."""
    flat: dict[str, float | None] = {}
    for name, value in place.items():
        if isinstance(value, dict):
            flat |= {name: value["mean"], f"{name}_std": value["std"]}
    return flat
