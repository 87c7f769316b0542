"""The plain ranker of a bundle as an ONNX graph, for runtimes other than ours.

    slots int64 [rows, S], scenario int64 [rows] -> score float32 [rows], the probabilities that `Ranker.rank` gives

A row of `slots` is a user's column `slots` of `users.arrow`, then the item's of `items.arrow`, then for the scenario
and each context field where its range of the embedding table begins (`model.embedding.slot_starts`) plus its number in
`bundle.json`. The graph has no groups of rows, so each layer of a scenario reads all rows: with very many scenarios our
own scorer is the faster one.

Shape suffixes: B rows, S slots, N slots of one field, E embedding width, D = E numbers of each field.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from llm4msr.bundle.ranker import Ranker
from llm4msr.errors import ConfigError, MissingExtraError
from llm4msr.model.serving_net import ServingNet
from llm4msr.text import first_line

ROWS = 3
"""Of the example that the graph is made with: not 1, which would be taken for a constant."""


def write_onnx(ranker: Ranker, file: str | Path) -> None:
    """Write the net of a ranker without knowledge and without a match; any backbone of this package exports.

    Raises:
        ConfigError: the model reads knowledge or pasts, or its backbone does not export.
        MissingExtraError: the extra `onnx` is not installed.
    """
    model = ranker.description.model
    if model.variant != "none":
        raise ConfigError(f"model '{model.variant}': the plain ranker alone exports to ONNX (model.knowledge = 'none')")
    try:
        import onnxscript  # noqa: F401  (torch's exporter needs it, and says so less plainly)
    except ImportError:
        raise MissingExtraError("ONNX needs onnxscript; pip install 'llm4msr[onnx]'") from None
    slots = sum(field.slots for field in ranker.net.fields)
    example = torch.zeros(ROWS, slots, dtype=torch.int64), torch.zeros(ROWS, dtype=torch.int64)
    rows = {0: torch.export.Dim("rows")}
    try:
        with torch.no_grad():  # exported first by itself: the exporter would fall back to a graph of these very rows
            program = torch.export.export(_PlainGraph(ranker.net).eval(), example, dynamic_shapes=(rows, rows))
            graph = torch.onnx.export(
                program, dynamo=True, input_names=["slots", "scenario"], output_names=["score"], verbose=False
            )
    except Exception as error:  # of a backbone of somebody else's, anything
        raise ConfigError(f"model.backbone '{model.backbone}' does not export to ONNX: {first_line(error)}") from error
    assert graph is not None
    graph.save(file)


class _PlainGraph(nn.Module):
    """The net that serves, with an embedding that is a graph: its own is made for training."""

    def __init__(self, net: ServingNet):
        super().__init__()
        self.net = net

    def forward(self, slots_BS: Tensor, scenario_B: Tensor) -> Tensor:
        """Probabilities [B]."""
        net = self.net
        logits_B = net.backbone(self._embed(slots_BS), scenario_B)
        return torch.sigmoid(logits_B * net.slope_S[scenario_B] + net.bias_S[scenario_B])

    def _embed(self, slots_BS: Tensor) -> Tensor:
        """[B, D]; a many-valued field is the mean of its values, 0 where it has none."""
        parts, column, start = list[Tensor](), 0, 0
        for field in self.net.fields:
            places_BN = slots_BS[:, column : column + field.slots]
            values_BNE = self.net.embedding.table(places_BN)
            if field.slots > 1:
                filled_BN1 = (places_BN > start).float()[..., None]
                values_BNE = (values_BNE * filled_BN1).sum(1, keepdim=True) / filled_BN1.sum(1, keepdim=True).clamp(
                    min=1
                )
            parts.append(values_BNE[:, 0])
            column, start = column + field.slots, start + field.size
        return torch.cat(parts, dim=1)
