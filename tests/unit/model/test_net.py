from itertools import product

import pytest
import torch

from llm4msr.config import BACKBONES
from llm4msr.model.inputs import Batch
from llm4msr.model.net import RankerNet
from llm4msr.model.serving_net import ServingNet
from tests.support.data import FIELDS, WIDTH, model_config, random_batch, statistics

SCENARIOS = 4
LEVELS = ("user", "scenario", "both")
every_level = pytest.mark.parametrize("knowledge", LEVELS)
every_fusion = pytest.mark.parametrize("fusion", ["add", "gate", "concat"])
every_use = pytest.mark.parametrize("knowledge", ["none", "feature", *LEVELS])


def net(perturb: float = 0.0, **changes: object) -> RankerNet:
    config = model_config(**changes)
    torch.manual_seed(7)
    made = RankerNet(FIELDS, SCENARIOS, config, statistics())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(perturb * torch.randn_like(parameter))
    return made


def without_vectors(batch: Batch) -> Batch:
    nobody, unknown = torch.zeros((1, 0), dtype=torch.float16), torch.zeros(1, dtype=torch.bool)
    return Batch(batch.slots_BS, batch.scenario_B, torch.zeros_like(batch.owner_B), nobody, unknown)


@pytest.mark.parametrize(
    ("backbone", "knowledge", "rank", "layers"),
    [*product(sorted(BACKBONES), LEVELS, (0, 1, 8), (1,)), ("mmoe", "both", 4, 3)],
)
def test_knowledge_starts_exactly_at_the_plain_backbone(backbone: str, knowledge: str, rank: int, layers: int):
    plain = net(backbone=backbone, knowledge="none").eval()
    rich = net(backbone=backbone, knowledge=knowledge, meta_rank=rank, meta_layers=layers).eval()
    batch = random_batch()
    with torch.inference_mode():
        expected = plain(without_vectors(batch))
        assert expected.std() > 0
        assert torch.equal(rich(batch), expected)


@every_fusion
def test_the_scenario_level_starts_at_the_plain_backbone_however_it_is_fused(fusion: str):
    plain = net(knowledge="none").eval()
    batch = random_batch()
    for knowledge in ("scenario", "both"):
        rich = net(knowledge=knowledge, fusion=fusion).eval()
        with torch.inference_mode():
            assert torch.equal(rich(batch), plain(without_vectors(batch)))


@every_fusion
def test_a_fusion_is_its_formula(fusion: str):
    moved = net(0.1, knowledge="scenario", fusion=fusion).eval()
    batch, level = random_batch(), moved.scenario_meta
    x_BD, logits_B = torch.randn(23, moved.embedding.width), torch.randn(23)
    code_SK = torch.rand(SCENARIOS, moved.scenario_code.default_K.numel())
    out_BO = level.meta(x_BD, code_SK[batch.scenario_B])
    if fusion == "concat":
        seen = torch.cat([logits_B[:, None], torch.nn.functional.silu(out_BO)], dim=1)
        expected = (seen @ level.fusion.merge.weight.T + level.fusion.merge.bias)[:, 0]
    else:
        share_B = torch.sigmoid(level.fusion.gate(x_BD))[:, 0] if fusion == "gate" else torch.ones(23)
        expected = logits_B + share_B * out_BO[:, 0]
    torch.testing.assert_close(
        level(logits_B, x_BD, level.generate(code_SK), batch.scenario_B), expected, atol=1e-5, rtol=1e-5
    )


def test_without_the_residual_the_generated_layer_takes_the_features_place():
    moved = net(0.1, knowledge="user", meta_residual=False).eval()
    batch = random_batch()
    code_BK = moved.user_codes(batch.z_NZ, batch.known_N)[batch.owner_B]
    x_BD = torch.nn.functional.silu(moved.user_meta(moved.embedding(batch.slots_BS), code_BK))
    torch.testing.assert_close(moved(batch), moved.backbone(x_BD, batch.scenario_B))


@pytest.mark.parametrize(("knowledge", "backbone"), list(product(("feature", *LEVELS), sorted(BACKBONES))))
def test_other_vectors_give_other_scores_once_the_parameters_have_moved(knowledge: str, backbone: str):
    moved = net(0.2, knowledge=knowledge, backbone=backbone).eval()
    batch = random_batch()
    with torch.inference_mode():
        before = moved(batch)
        if knowledge == "scenario":
            moved.scenarios_SZ.copy_(moved.scenarios_SZ.flip(0))
            other = moved(batch)
        else:
            other = moved(batch._replace(z_NZ=batch.z_NZ.flip(0)))
    assert ((before - other).abs() > 1e-5).float().mean() > 0.4


@pytest.mark.parametrize("knowledge", ["feature", "user", "both"])
def test_vectors_of_unknown_users_do_not_matter(knowledge: str):
    moved = net(0.1, knowledge=knowledge).eval()
    batch = random_batch()
    noisy = batch.z_NZ.clone()
    noisy[~batch.known_N] = 50
    with torch.inference_mode():
        assert torch.equal(moved(batch), moved(batch._replace(z_NZ=noisy)))
        flipped = moved(batch._replace(known_N=~batch.known_N))
    assert not torch.equal(moved(batch), flipped)


@every_use
@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_the_serving_net_equals_the_trained_one(knowledge: str, rank: int, layers: int, backbone: str):
    _serving_net_equals(knowledge=knowledge, meta_rank=rank, meta_layers=layers, backbone=backbone)


@pytest.mark.parametrize("changes", [{"fusion": "gate"}, {"fusion": "concat"}, {"meta_residual": False}])
def test_the_serving_net_equals_the_trained_one_with_every_switch(changes: dict[str, object]):
    _serving_net_equals(knowledge="both", **changes)


def _serving_net_equals(**changes: object) -> None:
    """For rows of all users together, and for those of each alone; who has no vector gets the default code."""
    moved, batch = net(0.1, **changes).eval(), random_batch()
    served = ServingNet.from_trained(moved, FIELDS, SCENARIOS, model_config(**changes))
    with torch.inference_mode():
        expected = moved(batch if moved.uses_users else without_vectors(batch))
        code_NK = torch.zeros(len(batch.z_NZ), 0)
        if moved.uses_users:
            made_NK = moved.user_codes(batch.z_NZ, torch.ones_like(batch.known_N))
            code_NK = torch.where(batch.known_N[:, None], made_NK, served.default_K)
        together = served(batch.slots_BS, batch.scenario_B, code_NK, batch.owner_B)
        torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)
        for user in range(len(code_NK)):
            mine = batch.owner_B == user
            alone = served(
                batch.slots_BS[mine], batch.scenario_B[mine], code_NK[user : user + 1], batch.owner_B[mine] * 0
            )
            torch.testing.assert_close(alone, expected[mine], atol=1e-5, rtol=1e-5)


@every_use
def test_a_row_scores_the_same_alone_and_in_the_batch(knowledge: str):
    moved = net(0.1, knowledge=knowledge).eval()
    batch = random_batch()
    if not moved.uses_users:
        batch = without_vectors(batch)
    with torch.inference_mode():
        together = moved(batch)
        rows = [
            Batch(
                batch.slots_BS[i : i + 1],
                batch.scenario_B[i : i + 1],
                torch.zeros(1, dtype=torch.int64),
                batch.z_NZ[batch.owner_B[i], None],
                batch.known_N[batch.owner_B[i], None],
            )
            for i in range(len(together))
        ]
        torch.testing.assert_close(torch.cat([moved(row) for row in rows]), together, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("changes", [{"fusion": "gate"}, {"fusion": "concat"}, {"meta_residual": False}, {}])
@every_use
def test_gradient_reaches_every_parameter(knowledge: str, changes: dict[str, object]):
    moved = net(0.1, knowledge=knowledge, knowledge_dropout=0.3, **changes).train()
    batch = random_batch(rows=400, users=50)
    torch.manual_seed(0)
    scores = moved(batch if moved.uses_users else without_vectors(batch))
    (scores * torch.randn(len(scores))).sum().backward()
    still = [name for name, p in moved.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert not still


def test_codes_are_rounded_to_what_a_bundle_keeps_in_evaluation_alone():
    moved = net(0.1, knowledge="user", knowledge_dropout=0.0)
    batch = random_batch()
    rounded = moved.eval().user_codes(batch.z_NZ, batch.known_N)
    exact = moved.train().user_codes(batch.z_NZ, batch.known_N)
    assert torch.equal(rounded, exact.half().float())
    assert not torch.equal(rounded, exact)


def test_some_users_knowledge_is_dropped_in_training_alone():
    moved = net(0.1, knowledge="user", knowledge_dropout=0.4)
    z_NZ, known_N = torch.randn(4000, WIDTH).half(), torch.ones(4000, dtype=torch.bool)
    default = torch.tanh(moved.user_code.default_K)
    dropped = (moved.train().user_codes(z_NZ, known_N) == default).all(1).float().mean().item()
    assert 0.35 < dropped < 0.45
    assert not (moved.eval().user_codes(z_NZ, known_N) == default.half().float()).all(1).any()


@every_level
def test_the_llms_vectors_are_no_parameters(knowledge: str):
    names = {name for name, _ in net(knowledge=knowledge).named_parameters()}
    assert not {n for n in names if "scenarios_SZ" in n or "mean_Z" in n or "scale_Z" in n}


def test_a_model_without_knowledge_needs_no_statistics():
    config = model_config(knowledge="none")
    made = RankerNet(FIELDS, SCENARIOS, config, None).eval()
    assert made(without_vectors(random_batch())).shape == (23,)
    assert not made.uses_users
