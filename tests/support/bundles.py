"""Bundles of nets with random parameters, and codes of newer knowledge for them, published in this process."""

from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from llm4msr import Ranker, RankRequest, storage
from llm4msr.bundle import files, id_table
from llm4msr.config import Config
from llm4msr.export import user_codes
from llm4msr.export.calibration import Calibrated
from llm4msr.export.write import Sources, write_bundle
from llm4msr.knowledge.rows import read_vectors, row_groups
from llm4msr.model.net import RankerNet
from llm4msr.storage import StageOutput, StageResult
from llm4msr.storage.vectors import to_column, to_matrix
from llm4msr.training.dataset import Dataset


class Published(NamedTuple):
    """A bundle, and what it was made of."""

    output: StageOutput
    data: Dataset
    net: RankerNet
    """In evaluation."""


def publish_bundle(
    world: tuple[Config, StageOutput, StageOutput], folder: Path, calibrated: Calibrated | None = None, **model: Any
) -> Published:
    """A bundle of a net whose parameters were moved at random, the same each time, so that nothing is zero.

    `world` is a config, prepared data and knowledge; `model` changes the config's section of that name.
    """
    config, data, knowledge = world
    config = config.model_copy(update={"model": config.model.model_copy(update=model)})
    opened = Dataset.open(config, data, knowledge)
    net = opened.new_net(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    tables = [encode_all(knowledge, net)] if net.uses_users else []

    def build(at: Any) -> StageResult:
        return write_bundle(
            Sources(config, net, opened, tables, calibrated=calibrated), at, {"model": "made-up"}, "# card"
        )

    output = storage.publish(storage.path(folder / "bundle"), "export", 1, {}, {}, build)
    return Published(output, opened, net.eval())


def encode_all(knowledge: StageOutput, net: RankerNet) -> pa.Table:
    """What `user_codes.encode_all` makes on Ray."""
    parts = [read_vectors(group) for group in row_groups(knowledge)]
    return user_codes.encode(pa.concat_tables(parts), net.eval().user_code)


def read_codes(bundle: Any) -> pa.Table:
    """id and code, by id."""
    return pa.ipc.open_file(str(Path(str(bundle)) / files.CODES)).read_all().select(["id", "code"]).sort_by("id")


def publish_codes(bundle: StageOutput, folder: Path, table: pa.Table) -> str:
    """The URI of what `refresh` publishes: these codes, for this bundle."""

    def build(at: Any) -> StageResult:
        rows = id_table.write(at / files.CODES, [table], files.code_schema(bundle.folder))
        return StageResult(files={files.CODES: rows}, rows=rows)

    return str(storage.publish(storage.path(folder), "refresh", 1, {}, {}, build).folder)


def flip_code(table: pa.Table, user: str) -> pa.Table:
    """The same codes, but one user's with the other sign."""
    codes = to_matrix(table["code"]).copy()
    codes[table["id"].to_pylist().index(user)] *= -1
    return pa.table({"id": table["id"], "code": to_column(codes)})


def rank_request(**changes: Any) -> RankRequest:
    """A request for a known user, scenario and items of the world that the unit tests share."""
    fields = {"user_id": "u1", "scenario": "home", "items": ["i3", "i1", "i2"], "context": {"device": "tv"}}
    return RankRequest.model_validate(fields | changes)


def scores(ranker: Ranker, **changes: Any) -> dict[str, float]:
    """Scores of the items of `rank_request(**changes)`."""
    return {item.item_id: item.score for item in ranker.rank(rank_request(**changes)).ranked}
