import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from llm4msr import Ranker, RankRequest, storage
from llm4msr.bundle import files, id_table
from llm4msr.bundle.files import SelfTest
from llm4msr.bundle.id_table import IdTable
from llm4msr.config import Config
from llm4msr.errors import ConfigError, StorageError
from llm4msr.export import user_codes
from llm4msr.export.write import write
from llm4msr.knowledge.rows import read_vectors, row_groups
from llm4msr.storage import StageOutput
from llm4msr.text import MAX_ID
from llm4msr.training.batches import RowReader
from llm4msr.training.dataset import Dataset
from tests.unit.conftest import World

VARIANTS = ("none", "user", "scenario", "both", "feature")


def config_with(world: World, variant: str, **model: Any) -> Config:
    changed = world.config.model.model_copy(update={"knowledge": variant, **model})
    return world.config.model_copy(update={"model": changed})


def publish(world: World, variant: str, folder: Path, **model: Any) -> tuple[StageOutput, Dataset, Any]:
    """A bundle of a net whose parameters were moved at random, so that nothing is zero."""
    config = config_with(world, variant, **model)
    data = Dataset.open(config, world.data, world.knowledge)
    net = data.new_net(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    tables = [encoded(world.knowledge, net)] if net.uses_users else []

    def build(at: Any) -> storage.StageResult:
        return write(config, net, data, tables, {"model": "made-up"}, "# card", at)

    return storage.publish(storage.path(folder / "bundle"), "export", 1, {}, {}, build), data, net.eval()


def encoded(output: StageOutput, net: Any) -> pa.Table:
    """What `codes.encoded` makes on Ray."""
    parts = [read_vectors(group) for group in row_groups(output)]
    return user_codes.encode(pa.concat_tables(parts), net.eval().user_code).sort_by("id")


@pytest.fixture(scope="module")
def published(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[StageOutput, Dataset, Any]:
    return publish(world, "both", tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def ranker(published: tuple[StageOutput, Dataset, Any]) -> Ranker:
    return Ranker.load(str(published[0].folder))


@pytest.fixture
def copied(published: tuple[StageOutput, Dataset, Any], tmp_path: Path) -> Path:
    """A bundle to be damaged."""
    return Path(shutil.copytree(str(published[0].folder), tmp_path / "copy"))


def request(**changes: Any) -> RankRequest:
    asked = {"user_id": "u1", "scenario": "home", "items": ["i3", "i1", "i2"], "context": {"device": "tv"}}
    return RankRequest.model_validate(asked | changes)


def scores(ranker: Ranker, asked: RankRequest) -> dict[str, float]:
    return {item.item_id: item.score for item in ranker.rank(asked).ranked}


def is_known(world: World, user: str) -> bool:
    file = next(f for f in world.knowledge.manifest.files if "users-" in f)
    rows = storage.read_table(world.knowledge.folder / file, ["id", "error"]).to_pylist()
    ids = storage.read_table(world.data.folder / "users.parquet")["user_id"].to_pylist()
    return not next(row["error"] for row in rows if ids[row["id"]] == user)


@pytest.mark.parametrize(
    ("variant", "model"),
    [
        *((variant, {}) for variant in VARIANTS),
        ("both", {"meta_rank": 0}),
        ("both", {"meta_layers": 2, "fusion": "gate"}),
        ("both", {"meta_residual": False, "fusion": "concat", "backbone": "star"}),
        ("scenario", {"meta_layers": 2, "meta_rank": 0}),
    ],
)
def test_scores_are_those_of_the_net_in_evaluation(world: World, tmp_path: Path, variant: str, model: dict[str, Any]):
    output, data, net = publish(world, variant, tmp_path, **model)
    ranker = Ranker.load(str(output.folder))
    rows, _ = next(RowReader(world.data.folder / "test.parquet", ["device"]).batches(40, None))
    with torch.inference_mode():
        expected = torch.sigmoid(net(data.batch(rows, net)))
    raw = {
        side: storage.read_table(world.data.folder / f"{side}s.parquet")[f"{side}_id"].to_pylist()
        for side in ("user", "item", "scenario")
    }
    devices = ["", *json.loads(storage.read_bytes(world.data.folder / "fields.json"))["context"]["device"]]
    columns = (rows.user_B, rows.item_B, rows.scenario_B, rows.context_BC[:, 0], expected)
    for user, item, scenario, device, score in zip(*(c.tolist() for c in columns), strict=True):
        asked = RankRequest(
            user_id=raw["user"][user],
            scenario=raw["scenario"][scenario],
            items=[raw["item"][item]],
            context={"device": devices[device]} if device else {},
        )
        assert ranker.rank(asked).ranked[0].score == pytest.approx(score, abs=1e-5)
    assert expected.std() > 1e-3


def test_many_candidates_score_like_each_alone(ranker: Ranker):
    items = [f"i{i}" for i in range(20)]
    together = scores(ranker, request(items=items))
    for item in items:
        assert scores(ranker, request(items=[item]))[item] == pytest.approx(together[item], abs=1e-6)


def test_the_best_comes_first(ranker: Ranker):
    response = ranker.rank(request(items=[f"i{i}" for i in range(20)]))
    found = [item.score for item in response.ranked]
    assert found == sorted(found, reverse=True)
    assert len({item.item_id for item in response.ranked}) == 20
    assert all(0 < score < 1 for score in found)


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (2, 2), (99, 3), (None, 3)])
def test_top_k_cuts_the_answer(ranker: Ranker, top_k: int | None, count: int):
    whole = ranker.rank(request()).ranked
    assert ranker.rank(request(top_k=top_k)).ranked == whole[:count]


def test_equal_scores_keep_the_order_of_the_request(ranker: Ranker):
    strangers = [f"never-seen-{i * 7 % 500}" for i in range(500)]
    mixed = [item for pair in zip(strangers, ["i1", "i2"] * 250, strict=True) for item in pair]
    found = [item.item_id for item in ranker.rank(request(items=mixed)).ranked]
    assert [item for item in found if item.startswith("never")] == strangers
    items = strangers[:5]
    assert [item.item_id for item in ranker.rank(request(items=items, top_k=2)).ranked] == items[:2]


def test_unknown_ids_are_told_and_ranked(ranker: Ranker):
    response = ranker.rank(request(user_id="stranger", scenario="nowhere", items=["i1", "odd", "i2", ""]))
    assert response.unknown.user
    assert response.unknown.scenario
    assert response.unknown.items == ["odd", ""]
    assert len(response.ranked) == 4
    assert response.knowledge == "none"
    known = ranker.rank(request()).unknown
    assert (known.user, known.scenario, known.items) == (False, False, [])


def test_all_strangers_score_alike(ranker: Ranker):
    assert scores(ranker, request(user_id="a")) == scores(ranker, request(user_id="b"))
    assert scores(ranker, request(user_id="a")) != scores(ranker, request())


def test_knowledge_is_used_for_who_has_some(ranker: Ranker, world: World):
    for user in (f"u{i}" for i in range(40)):
        expected = "used" if is_known(world, user) else "none"
        assert ranker.rank(request(user_id=user)).knowledge == expected
    assert ranker.info().users_with_knowledge == 37


def read_codes(folder: Any) -> pa.Table:
    return pa.ipc.open_file(str(Path(str(folder)) / files.CODES)).read_all()


def publish_codes(published: Any, folder: Path, table: pa.Table) -> str:
    """What `refresh` publishes: these codes, for this bundle."""

    def build(at: Any) -> storage.StageResult:
        rows = id_table.write(at / files.CODES, [table], files.code_schema(published[0].folder))
        return storage.StageResult(files={files.CODES: rows}, rows=rows)

    return str(storage.publish(storage.path(folder), "refresh", 1, {}, {}, build).folder)


def turned(table: pa.Table, user: str) -> pa.Table:
    """The same codes, but the other way round for one user."""
    flat = table["code"].combine_chunks().flatten().to_numpy().copy().reshape(table.num_rows, -1)
    mine = table["id"].to_pylist().index(user)
    flat[mine] = -flat[mine]
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1), pa.float16()), flat.shape[1])
    return pa.table({"id": table["id"], "code": column})


def test_newer_codes_change_their_users_scores_and_nobody_elses(published: Any, ranker: Ranker, tmp_path: Path):
    newer = ranker.with_codes(publish_codes(published, tmp_path / "a7", turned(read_codes(published[0].folder), "u1")))
    assert scores(newer, request()) != scores(ranker, request())
    assert scores(newer, request(user_id="u2")) == scores(ranker, request(user_id="u2"))
    assert (newer.rank(request()).knowledge_version, newer.model_version) == ("a7", ranker.model_version)
    assert ranker.rank(request()).knowledge_version == ranker.model_version


def test_a_new_user_gets_the_default_and_after_a_refresh_the_own_code(published: Any, ranker: Ranker, tmp_path: Path):
    assert ranker.rank(request(user_id="u1x")).knowledge == "none"
    table = read_codes(published[0].folder)
    copied = table.slice(table["id"].to_pylist().index("u1"), 1).set_column(
        0, "id", pa.array(["u1x"], pa.large_string())
    )
    both = pa.concat_tables([table, copied]).sort_by("id")
    newer = ranker.with_codes(publish_codes(published, tmp_path / "b", both))
    assert newer.rank(request(user_id="u1x")).knowledge == "used"
    assert newer.rank(request(user_id="u1x")).unknown.user
    assert scores(newer, request(user_id="u1x")) != scores(ranker, request(user_id="u1x"))


def test_codes_of_another_model_are_refused(world: World, published: Any, ranker: Ranker, tmp_path: Path):
    other = publish(world, "user", tmp_path)
    foreign = publish_codes(other, tmp_path / "foreign", read_codes(other[0].folder))
    with pytest.raises(StorageError, match=r"foreign/codes\.arrow: codes of another model.*llm4msr refresh"):
        ranker.with_codes(foreign)
    with pytest.raises(StorageError, match="not a finished set of codes"):
        ranker.with_codes(str(published[0].folder))


def test_requests_ranked_together_score_like_each_alone(ranker: Ranker):
    asked = [
        request(),
        request(user_id="u2", scenario="search", items=["i5", "odd"], context={}),
        request(user_id="stranger", scenario="nowhere", top_k=1),
    ]
    together = ranker.rank_many(asked, ["a", "b", "c"])
    for one, id_, answer in zip(asked, "abc", together, strict=True):
        alone = ranker.rank(one, id_)
        assert [item.item_id for item in answer.ranked] == [item.item_id for item in alone.ranked]
        assert [i.score for i in answer.ranked] == pytest.approx([i.score for i in alone.ranked], abs=1e-6)
        assert answer.model_copy(update={"ranked": []}) == alone.model_copy(update={"ranked": []})


def test_as_many_ids_as_requests_or_an_error(ranker: Ranker):
    for ids in ([], ["a"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match=f"2 requests, but {len(ids)} request_ids"):
            ranker.rank_many([request(), request()], ids)
    assert ranker.rank_many([], []) == []


@pytest.mark.parametrize("variant", ["none", "scenario"])
def test_a_model_without_user_level_uses_no_users_knowledge(world: World, tmp_path: Path, variant: str):
    output, _, _ = publish(world, variant, tmp_path)
    ranker = Ranker.load(str(output.folder))
    assert ranker.rank(request()).knowledge == "none"
    assert ranker.info().users_with_knowledge == 0
    with pytest.raises(StorageError, match="no user level"):
        files.read_coder(output.folder, ranker.config)


def test_context_matters_and_may_be_left_out(ranker: Ranker):
    tv, phone, none, odd = (
        scores(ranker, request(context=c)) for c in ({"device": "tv"}, {"device": "phone"}, {}, {"device": "fax"})
    )
    assert tv != phone
    assert none == odd
    assert none not in (tv, phone)


def test_unknown_context_field_is_refused(ranker: Ranker):
    with pytest.raises(ConfigError, match="context: unknown field 'weather'; this model knows: device"):
        ranker.rank(request(context={"device": "tv", "weather": "rain"}))


def test_answers_carry_version_and_request_id(ranker: Ranker, published: Any):
    response = ranker.rank(request(), "my-id")
    assert response.request_id == "my-id"
    assert response.scenario == "home"
    assert response.model_version == published[0].manifest.fingerprint == ranker.info().model_version
    one, two = ranker.rank(request()).request_id, ranker.rank(request()).request_id
    assert one
    assert one != two


def test_info_says_what_is_loaded(ranker: Ranker):
    info = ranker.info()
    assert (info.name, info.backbone, info.knowledge) == ("tiny", "mmoe", "both")
    assert (info.scenarios, info.context, info.users, info.items) == (["home", "search"], ["device"], 40, 20)
    assert ranker.titles["i3"] == "Title 3"


@pytest.mark.parametrize("bad", [{"items": []}, {"top_k": 0}, {"surprise": 1}, {"user_id": "x" * (MAX_ID + 1)}])
def test_a_malformed_request_is_refused(bad: dict[str, Any]):
    with pytest.raises(ValidationError):
        request(**bad)


# --- what is refused ----------------------------------------------------------------------------------------------


def mend_manifest(folder: Path, name: str) -> None:
    """Let the manifest agree with a changed file, so that later checks are reached."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] |= {
        "bytes": (folder / name).stat().st_size,
        "digest": storage.digest_file(storage.path(folder / name)),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def damage(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    mend_manifest(folder, name)


def refused(folder: Path) -> str:
    with pytest.raises(StorageError) as caught:
        Ranker.load(str(folder))
    return str(caught.value)


def test_another_version_is_refused(copied: Path):
    described = json.loads((copied / "bundle.json").read_text()) | {"version": 99}
    damage(copied, "bundle.json", json.dumps(described).encode())
    assert (
        refused(copied) == f"{copied}/bundle.json: bundle version 99, this package reads {files.VERSION}; export again"
    )


@pytest.mark.parametrize("text", ["", "{", '{"version": 1}', '{"version": 1, "surprise": 2}', "[1]"])
def test_damaged_bundle_json_is_refused(copied: Path, text: str):
    damage(copied, "bundle.json", text.encode())
    assert refused(copied).startswith(f"{copied}/bundle.json: ")


def test_truncated_weights_are_refused(copied: Path):
    weights = (copied / files.NET).read_bytes()
    (copied / files.NET).write_bytes(weights[:-100])
    assert f"{copied}/{files.NET}: {len(weights) - 100} bytes, not {len(weights)}" in refused(copied)
    damage(copied, files.NET, weights[:-100])
    assert refused(copied).startswith(f"{copied}/{files.NET}: does not fit bundle.json")


@pytest.mark.parametrize("change", [{"code_dim": 5}, {"backbone": "star"}, {"knowledge": "none"}])
def test_weights_of_another_model_are_refused(copied: Path, change: dict[str, Any]):
    described = json.loads((copied / "bundle.json").read_text())
    described["model"] |= change
    damage(copied, "bundle.json", json.dumps(described).encode())
    assert refused(copied).startswith(f"{copied}/{files.NET}: does not fit bundle.json")


def test_a_changed_byte_is_named(copied: Path):
    data = bytearray((copied / files.CODES).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / files.CODES).write_bytes(data)
    assert f"{copied}/{files.CODES}: damaged, its checksum is not the manifest's" in refused(copied)


def test_other_scores_than_at_export_are_refused(copied: Path):
    test = SelfTest.model_validate_json((copied / files.SELF_TEST).read_text())
    test.cases[-1].scores[0] += 1e-3
    damage(copied, files.SELF_TEST, test.model_dump_json().encode())
    assert f"{copied}: the self-test of user '" in refused(copied)
    assert "is off by 0.001, allowed is 1e-05" in refused(copied)


@pytest.mark.parametrize("name", [files.USERS, files.CODES, files.ITEMS, files.SELF_TEST])
def test_a_missing_file_is_named(copied: Path, name: str):
    (copied / name).unlink()
    assert refused(copied).startswith(f"{copied}/{name}: missing")


@pytest.mark.parametrize("name", [files.USERS, files.ITEMS, files.CODES, files.SELF_TEST])
def test_a_damaged_table_is_named(copied: Path, name: str):
    damage(copied, name, b"no table")
    assert refused(copied).startswith(f"{copied}/{name}: ")


def test_a_foreign_folder_is_refused(tmp_path: Path, world: World):
    (tmp_path / "README.md").write_text("hello")
    for folder in (tmp_path, tmp_path / "absent"):
        assert refused(folder) == f"{folder}: not a finished bundle; give the uri that `llm4msr export` printed"
    assert "not a finished bundle" in refused(Path(str(world.data.folder)))


def test_a_bundle_can_lie_on_an_object_store_and_is_copied_once(
    published: Any, ranker: Ranker, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("LLM4MSR_CACHE", str(tmp_path / "cache"))
    there = storage.path("memory://bundles/one")
    for file in Path(str(published[0].folder)).iterdir():
        storage.write_bytes(there / file.name, file.read_bytes())
    assert scores(Ranker.load("memory://bundles/one"), request()) == scores(ranker, request())
    (copied,) = (f for f in (tmp_path / "cache" / "bundles").iterdir() if f.is_dir())
    assert not copied.parent.stat().st_mode & 0o007  # where the cache itself is open to all
    before = (copied / files.NET).stat().st_mtime_ns
    Ranker.load("memory://bundles/one")
    assert (copied / files.NET).stat().st_mtime_ns == before


def test_codes_are_one_row_per_user_with_knowledge(published: Any, world: World):
    output, data, net = published
    table = read_codes(output.folder)
    ids = storage.read_table(world.data.folder / "users.parquet")["user_id"].to_pylist()
    known = np.flatnonzero(data.knowledge.known_N)
    assert table["id"].to_pylist() == sorted(ids[user] for user in known)
    assert table["code"].type == pa.list_(pa.float16(), world.config.model.code_dim)
    assert output.manifest.info["users_with_knowledge"] == table.num_rows == 37
    assert output.manifest.rows == len(ids) - 1
    expected_NK = net.user_codes(*data.knowledge.lookup(torch.from_numpy(known)))
    codes_of = IdTable(Path(str(output.folder)) / files.CODES)
    for user, expected_K in zip(known, expected_NK.tolist(), strict=True):
        assert codes_of.numbers("code", codes_of.find(ids[user])).tolist() == pytest.approx(expected_K, abs=1e-3)
