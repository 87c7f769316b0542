import numpy as np
import pytest
import torch

from llm4msr.model.embedding import FeatureEmbedding, Field, Side, slot_starts
from llm4msr.model.slot_embedding import SlotEmbedding

FIELDS = [
    Field("user_id", "user", 5, 1),
    Field("likes", "user", 4, 3),
    Field("item_id", "item", 7, 1),
    Field("genre", "item", 300, 2),
    Field("scenario_id", "scenario", 3, 1),
    Field("device", "context", 3, 1),
]
SIDES: tuple[Side, ...] = ("user", "item", "scenario", "context")


def drawn_slots(rows: int) -> torch.Tensor:
    starts_S = np.concatenate([slot_starts(FIELDS, side) for side in SIDES])
    sizes_S = np.repeat([field.size for field in FIELDS], [field.slots for field in FIELDS])
    return torch.from_numpy(np.random.default_rng(1).integers(sizes_S, size=(rows, len(sizes_S))) + starts_S)


@pytest.mark.parametrize("rows", [1, 50])
@pytest.mark.parametrize("sides", [SIDES, ("item",), ("user", "scenario", "context"), ("scenario",)])
def test_it_embeds_as_the_trained_net_does(rows: int, sides: tuple[Side, ...]):
    trained = FeatureEmbedding(FIELDS, 4)
    slots_BS = drawn_slots(rows)
    slots_BS[0] = torch.from_numpy(np.concatenate([slot_starts(FIELDS, side) for side in SIDES]))
    of_sides_S = [field.side in sides for field in FIELDS for _ in range(field.slots)]
    of_sides_D = [field.side in sides for field in FIELDS for _ in range(4)]
    with torch.no_grad():
        expected_BD = trained(slots_BS)[:, of_sides_D].numpy()
    embedding = SlotEmbedding(FIELDS, sides, trained.table.weight.detach().numpy())
    np.testing.assert_allclose(embedding.embed(slots_BS[:, of_sides_S].numpy()), expected_BD, atol=1e-7)
    assert embedding.nothing_S.tolist() == slots_BS[0, of_sides_S].tolist()
