import numpy as np
import pytest
import torch

from llm4msr.config import BACKBONES
from llm4msr.model.inputs import Batch, Past
from llm4msr.model.matching import COSINES, Chosen, TargetAttention, cosines, match_width
from llm4msr.model.net import RankerNet
from tests.support.data import FIELDS, model_config, random_batch, statistics

ITEMS, WIDTH, SCENARIOS = 9, 6, 4
PARTS = ("candidate", "cosines", "attention", "ids")
every_part = pytest.mark.parametrize("match", [*((part,) for part in PARTS), PARTS], ids="+".join)


def item_vectors() -> torch.Tensor:
    vectors_ID = torch.randn(ITEMS, WIDTH, generator=torch.Generator().manual_seed(5))
    vectors_ID[[0, 4]] = 0  # the unknown item, and one that nothing is known of
    return torch.nn.functional.normalize(vectors_ID, dim=1).half()


def net(perturb: float = 0.1, **changes: object) -> RankerNet:
    torch.manual_seed(7)
    known = statistics()
    known = type(known)(known.mean_Z, known.scale_Z, known.scenarios_SZ, item_vectors())
    made = RankerNet(FIELDS, SCENARIOS, model_config(**changes), known).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(perturb * torch.randn_like(parameter))
    return made


def with_past(batch: Batch, events: int = 5, seed: int = 1) -> Batch:
    """Pasts of every length from none to `events`; every other event is one that the user did not like."""
    rows, made = len(batch.scenario_B), torch.Generator().manual_seed(seed)
    item_BN = torch.randint(1, ITEMS, (rows, events), generator=made)
    item_BN[torch.arange(events) >= (torch.arange(rows) % (events + 1))[:, None]] = 0
    start = FIELDS[0].size
    candidate_B = batch.slots_BS[:, 1] - start
    scenario_BN = torch.randint(SCENARIOS, (rows, events), generator=made)
    liked_BN = torch.rand(rows, events, generator=made) < 0.6
    return batch._replace(past=Past(candidate_B, item_BN, item_BN + start, scenario_BN, liked_BN))


def rows_of(batch: Batch, rows: slice) -> Batch:
    assert batch.past is not None
    past = Past(*(column[rows] for column in batch.past))
    return batch._replace(
        slots_BS=batch.slots_BS[rows], scenario_B=batch.scenario_B[rows], owner_B=batch.owner_B[rows], past=past
    )


@every_part
def test_every_part_of_a_match_learns(match: tuple[str, ...]):
    moved, batch = net(match=match), with_past(random_batch())
    assert moved.match is not None
    moved(batch).sum().backward()
    for name, parameter in moved.match.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert moved._match(batch).shape == (len(batch.scenario_B), match_width(model_config(match=match)))


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
@pytest.mark.parametrize("knowledge", ["none", "feature", "both"])
def test_a_row_scores_the_same_alone_and_in_any_batch_with_a_past_of_any_width(backbone: str, knowledge: str):
    model, batch = net(backbone=backbone, knowledge=knowledge, match=PARTS), with_past(random_batch())
    assert batch.past is not None
    wider = Past(batch.past.candidate_B, *(torch.nn.functional.pad(column, (0, 3)) for column in batch.past[1:]))
    with torch.inference_mode():
        together = model(batch)
        for row in range(len(together)):
            alone = model(rows_of(batch, slice(row, row + 1)))
            torch.testing.assert_close(alone, together[row : row + 1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(batch._replace(past=wider)), together, atol=1e-5, rtol=1e-5)


@every_part
def test_a_user_without_a_past_is_scored_and_trained_without_nan(match: tuple[str, ...]):
    model, batch = net(match=match).train(), with_past(random_batch())
    assert batch.past is not None
    empty = batch.past._replace(item_BN=torch.zeros_like(batch.past.item_BN))
    logits_B = model(batch._replace(past=empty))
    logits_B.sum().backward()
    assert logits_B.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@every_part
def test_every_weight_has_a_gradient_if_a_worker_has_no_row_of_a_batch(match: tuple[str, ...]):
    """Or rows without any past: distributed training waits for a gradient of every parameter."""
    batch = with_past(random_batch())
    assert batch.past is not None
    empty = batch._replace(past=batch.past._replace(item_BN=torch.zeros_like(batch.past.item_BN)))
    for some in (rows_of(batch, slice(0, 0)), empty):
        model = net(match=match).train()
        model(some).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_candidate_and_the_past_change_the_score_only_through_what_is_known_of_them():
    model, batch = net(match=("candidate", "cosines", "attention")), with_past(random_batch())
    past = batch.past
    assert past is not None
    with torch.inference_mode():
        before = model(batch)
        unknown = torch.where(past.item_BN == 4, 0, past.item_BN)
        torch.testing.assert_close(model(batch._replace(past=past._replace(item_BN=unknown))), before)
        other = torch.where(past.item_BN > 0, past.item_BN % (ITEMS - 1) + 1, 0)
        changed = model(batch._replace(past=past._replace(item_BN=other)))
        has_past_B = (past.item_BN > 0).any(1)
        assert not torch.isclose(changed, before)[has_past_B].all()
        torch.testing.assert_close(changed[~has_past_B], before[~has_past_B])
        moved = model(batch._replace(past=past._replace(candidate_B=past.candidate_B % (ITEMS - 1) + 1)))
        assert not torch.isclose(moved, before).any()


def test_cosines_are_those_of_a_loop():
    batch = with_past(random_batch())
    past = batch.past
    assert past is not None
    unit_ID = torch.nn.functional.normalize(item_vectors().float(), dim=1)
    events = Chosen.of(unit_ID.any(1)[past.item_BN])
    past_ED = unit_ID[events.take(past.item_BN)]
    assert ((past.scenario_BN == 0) & (batch.scenario_B == 0)[:, None] & past.liked_BN & (past.item_BN > 0)).any()
    told = cosines(unit_ID[past.candidate_B], past_ED, events, past, batch.scenario_B).numpy()
    assert told.shape[1] == COSINES
    unit = unit_ID.numpy()
    for row in range(len(told)):
        events = zip(*(column[row].tolist() for column in past[1:]), strict=True)
        liked, here, elsewhere, disliked = [], [], [], []
        for item, _, scenario, is_liked in events:
            if unit[item].any():
                (liked if is_liked else disliked).append(unit[item])
                if is_liked:
                    (here if scenario == int(batch.scenario_B[row]) > 0 else elsewhere).append(unit[item])
        candidate, expected = unit[int(past.candidate_B[row])], []
        for group in (liked, here, elsewhere, disliked):
            mean = np.mean(group, axis=0) if group else np.zeros(WIDTH)
            expected.append(mean @ candidate / max(np.linalg.norm(mean), 1e-12))
        best = sorted((vector @ candidate for vector in liked), reverse=True)[:3]
        expected += [best[0], np.mean(best)] if best else [0, 0]
        np.testing.assert_allclose(told[row], expected, atol=1e-5)


def test_attention_looks_first_at_what_is_similar_and_leaves_a_share_to_the_empty_place():
    attention = TargetAttention(3, 4.0)
    candidate, past = torch.eye(3)[:1], torch.eye(3)
    mean, share = attention(candidate, past, Chosen.of(torch.ones(1, 3, dtype=torch.bool)))
    weights = torch.tensor([4.0, 0, 0, 0]).softmax(0)  # the last place is the empty one
    torch.testing.assert_close(mean[0], weights[:3])
    torch.testing.assert_close(share[0], 1 - weights[3])
    nothing, none = attention(candidate, past[:0], Chosen.of(torch.zeros(1, 3, dtype=torch.bool)))
    assert not nothing.any()
    assert not none.any()


def test_item_vectors_are_no_weights_and_are_not_saved():
    assert not any("unit" in name for name in net(match=PARTS).state_dict())


def test_parts_of_a_match_have_one_order_and_are_told_in_the_name_of_the_variant():
    assert model_config(match=("ids", "cosines", "ids")).match == ("cosines", "ids")
    names = {
        ("none", ()): "none",
        ("none", ("ids",)): "din",
        ("none", ("cosines",)): "match",
        ("both", ("ids", "cosines")): "both-match-din",
    }
    for (knowledge, match), name in names.items():
        config = model_config(knowledge=knowledge, match=match)
        assert config.variant == name
        assert config.uses_knowledge == (name not in ("none", "din"))
    assert model_config(knowledge="user", match=("cosines",), control="random").variant == "user-match-random"
