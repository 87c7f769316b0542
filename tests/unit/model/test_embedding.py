import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from llm4msr import storage
from llm4msr.model import embedding as embeddings
from llm4msr.model.embedding import FeatureEmbedding, Field
from llm4msr.training.feature_tables import FeatureTables
from tests.support.data import FIELDS, published, random_batch

FILES = {"users/p=00000.parquet": 3, "items.parquet": 1, "scenarios.parquet": 2, "fields.json": 1}


@pytest.fixture
def embedding() -> FeatureEmbedding:
    torch.manual_seed(0)
    return FeatureEmbedding(FIELDS, 4)


@pytest.fixture
def tables(tmp_path: Path) -> FeatureTables:
    """Two users with a country, two items with a brand and words, one scenario, two context fields."""
    folder = storage.path(tmp_path)
    users = {"user_id": ["", "a", "b"], "f:user_id": [0, 1, 2], "f:country": [0, 2, 1]}
    items = {"item_id": ["", "x", "y"], "f:item_id": [0, 1, 2], "f:words": [[], [3, 1], [2]]}
    storage.write_table(folder / "users/p=00000.parquet", pa.table(users))
    typed = pa.table(items).set_column(2, "f:words", pa.array(items["f:words"], pa.list_(pa.int64())))
    storage.write_table(folder / "items.parquet", typed)
    storage.write_table(folder / "scenarios.parquet", pa.table({"scenario": [0, 1]}))
    fields = {
        "user": {"user_id": ["a", "b"], "country": ["de", "fr"]},
        "item": {"item_id": ["x", "y"], "words": ["p", "q", "r"]},
        "context": {"device": ["tv"], "hour": ["1", "2", "3"]},
    }
    storage.write_bytes(folder / "fields.json", json.dumps(fields).encode())
    return FeatureTables.open(published(folder, FILES))


def test_fields_are_read_in_order_with_room_for_unknown(tables: FeatureTables):
    assert tables.fields == [
        Field("user_id", "user", 3, 1),
        Field("country", "user", 3, 1),
        Field("item_id", "item", 3, 1),
        Field("words", "item", 4, 2),
        Field("scenario_id", "scenario", 2, 1),
        Field("device", "context", 2, 1),
        Field("hour", "context", 4, 1),
    ]
    assert tables.scenarios == 2


def test_slots_are_the_features_numbers_moved_to_their_fields(tables: FeatureTables):
    slots = tables.slots(
        torch.tensor([1, 0]), torch.tensor([1, 2]), torch.tensor([1, 0]), torch.tensor([[1, 3], [0, 0]])
    )
    starts = np.cumsum([0, 3, 3, 3, 4, 2, 2])
    at = starts[[0, 1, 2, 3, 3, 4, 5, 6]]
    assert (slots - torch.from_numpy(at)).tolist() == [[1, 2, 1, 3, 1, 1, 1, 3], [0, 0, 2, 2, 0, 0, 0, 0]]


def test_slots_of_different_fields_never_collide(tables: FeatureTables):
    rows = [(u, i, s, d, h) for u in range(3) for i in range(3) for s in range(2) for d in range(2) for h in range(4)]
    user, item, scenario, *context = torch.tensor(rows).T
    slots = tables.slots(user, item, scenario, torch.stack(context, dim=1))
    columns, seen = 0, []
    for field in tables.fields:
        seen.append(set(slots[:, columns : columns + field.slots].flatten().tolist()))
        assert len(seen[-1]) == field.size
        columns += field.slots
    assert columns == slots.shape[1]
    assert set.union(*seen) == set(range(sum(field.size for field in tables.fields)))
    assert sum(map(len, seen)) == sum(field.size for field in tables.fields)


def test_a_table_without_lists_or_context(tmp_path: Path):
    folder = storage.path(tmp_path)
    for side, file in (("user", "users/p=00000.parquet"), ("item", "items.parquet")):
        columns = {f"{side}_id": ["", "a"], f"f:{side}_id": [0, 1]}
        storage.write_table(folder / file, pa.table(columns))
    storage.write_table(folder / "scenarios.parquet", pa.table({"scenario": [0, 1]}))
    storage.write_bytes(
        folder / "fields.json", b'{"user": {"user_id": ["a"]}, "item": {"item_id": ["a"]}, "context": {}}'
    )
    tables = FeatureTables.open(published(folder, FILES | {"users/p=00000.parquet": 2}))
    one = torch.tensor([1])
    assert tables.slots(one, one, one, torch.zeros((1, 0), dtype=torch.int64)).tolist() == [[1, 3, 5]]


def test_embedding_concatenates_fields(embedding: FeatureEmbedding):
    slots = torch.tensor([[3, 11 + 2, 20 + 1, 20 + 4, 20 + 5, 26 + 1]])
    weight = embedding.table.weight
    words = (weight[21] + weight[24] + weight[25]) / 3
    torch.testing.assert_close(embedding(slots)[0], torch.cat([weight[3], weight[13], words, weight[27]]))
    assert embedding.width == embedding(slots).shape[1] == 16


def test_average_of_many_values_leaves_padding_out(embedding: FeatureEmbedding):
    padded = torch.tensor([[3, 13, 21, 20, 20, 27], [3, 13, 20, 21, 20, 27], [3, 13, 20, 20, 20, 27]])
    words = embedding(padded)[:, 8:12]
    torch.testing.assert_close(words[0], embedding.table.weight[21])
    torch.testing.assert_close(words[1], words[0])
    assert (words[2] == 0).all()


def test_unknown_is_the_first_number_of_a_field_and_has_an_embedding_of_its_own(embedding: FeatureEmbedding):
    out = embedding(torch.tensor([[0, 11, 21, 20, 20, 26]]))[0]
    torch.testing.assert_close(out[:8], embedding.table.weight[[0, 11]].flatten())
    torch.testing.assert_close(out[12:], embedding.table.weight[26])
    assert embedding.table.weight.abs().min() > 0


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("few", [0, 256])
def test_embedding_and_its_gradient_are_those_of_plain_means(
    embedding: FeatureEmbedding, few: int, sparse: bool, monkeypatch: pytest.MonkeyPatch
):
    """Few or many values: two ways to take a mean; a value that stands twice counts twice."""
    monkeypatch.setattr(embeddings, "FEW_VALUES", few)
    embedding.table.sparse = sparse
    slots = random_batch(rows=50).slots_BS
    slots[0, 2:5], slots[1, 2:5] = 20, torch.tensor([23, 23, 25])
    weight = embedding.table.weight.detach().clone().requires_grad_()
    rows = []
    for row in slots:
        words = [weight[place] for place in row[2:5] if place > 20]
        mean = torch.stack(words).mean(0) if words else torch.zeros(4)
        rows.append(torch.cat([weight[row[0]], weight[row[1]], mean, weight[row[5]]]))
    torch.testing.assert_close(embedding(slots), torch.stack(rows))
    factor = torch.randn(50, 16)
    (embedding(slots) * factor).sum().backward()
    (torch.stack(rows) * factor).sum().backward()
    found = embedding.table.weight.grad
    assert found is not None
    assert found.is_sparse == sparse
    torch.testing.assert_close(found.to_dense(), weight.grad)


def test_what_is_looked_up_again_is_not_saved(embedding: FeatureEmbedding):
    assert list(embedding.state_dict()) == ["table.weight"]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_hide_makes_that_share_of_ids_unknown_and_touches_nothing_else(embedding: FeatureEmbedding, share: float):
    slots = random_batch(rows=4000).slots_BS
    before = slots.clone()
    torch.manual_seed(0)
    hidden = embedding.hide(slots, share)
    assert torch.equal(slots, before)
    assert torch.equal(hidden[:, 2:5], slots[:, 2:5])
    for column, start in ((0, 0), (1, 11), (5, 26)):
        changed = hidden[:, column] != slots[:, column]
        assert (hidden[:, column][changed] == start).all()
        was_known = slots[:, column] != start
        assert abs(changed[was_known].float().mean().item() - share) < (0.04 if 0 < share < 1 else 1e-9)


def test_ids_are_hidden_independently_of_each_other(embedding: FeatureEmbedding):
    slots = torch.tensor([[1, 12, 20, 20, 20, 27]]).expand(4000, -1)
    hidden = embedding.hide(slots, 0.5) != slots
    together = (hidden[:, 0] & hidden[:, 1] & hidden[:, 5]).float().mean().item()
    assert 0.08 < together < 0.17


def test_the_slots_tell_the_scenario_and_whether_it_is_hidden(tables: FeatureTables):
    embedding = FeatureEmbedding(tables.fields, 4)
    scenario_B = torch.arange(200) % tables.scenarios
    zeros = torch.zeros(200, dtype=torch.int64)
    slots_BS = tables.slots(zeros, zeros, scenario_B, torch.zeros((200, len(tables.context_start)), dtype=torch.int64))
    assert torch.equal(embedding.scenarios(slots_BS), scenario_B)
    assert not embedding.scenarios(embedding.hide(slots_BS, 1.0)).any()
