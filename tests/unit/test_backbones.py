import pytest
import torch

from llm4msr import backbones
from llm4msr.backbones import BACKBONES
from llm4msr.backbones.base import RowGroups
from tests.unit.helpers import model_config

WIDTH, SCENARIOS = 12, 4

every_backbone = pytest.mark.parametrize("name", sorted(BACKBONES))


def made(name: str) -> torch.nn.Module:
    """A backbone that has moved away from its initial values, so that scenarios differ."""
    torch.manual_seed(1)
    net = backbones.build(WIDTH, SCENARIOS, model_config(backbone=name))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def rows(count: int = 37) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(2)
    return torch.randn(count, WIDTH, generator=made), torch.randint(SCENARIOS, (count,), generator=made)


@every_backbone
def test_a_row_scores_the_same_alone_and_in_any_batch(name: str):
    net = made(name).eval()
    x_BD, scenario_B = rows()
    with torch.inference_mode():
        together = net(x_BD, scenario_B)
        alone = torch.cat([net(x_BD[i : i + 1], scenario_B[i : i + 1]) for i in range(len(x_BD))])
        mixed = torch.randperm(len(x_BD), generator=torch.Generator().manual_seed(0))
        shuffled = net(x_BD[mixed], scenario_B[mixed])
        among_others = net(
            torch.cat([x_BD, 100 * torch.randn(50, WIDTH)]), torch.cat([scenario_B, torch.zeros(50, dtype=torch.int64)])
        )
    assert together.shape == (len(x_BD),)
    assert together.std() > 1e-3
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)
    torch.testing.assert_close(shuffled, together[mixed], atol=1e-6, rtol=0)
    torch.testing.assert_close(among_others[: len(x_BD)], together, atol=1e-6, rtol=0)


@every_backbone
def test_scenarios_score_the_same_row_differently(name: str):
    net = made(name).eval()
    x_BD = rows(1)[0].expand(SCENARIOS, -1)
    scores = net(x_BD, torch.arange(SCENARIOS))
    assert len(set(scores.tolist())) == SCENARIOS


def own_parameters(name: str, net: torch.nn.Module, scenario: int) -> list[tuple[str, torch.Tensor]]:
    """(name, gradient) of what belongs to one scenario alone."""
    found = [(n, p.grad) for n, p in net.named_parameters() if f"towers.{scenario}." in n]
    if name == "mmoe":
        experts = len(net.experts)
        mine = slice(scenario * experts, (scenario + 1) * experts)
        found += [("gate", net.gates.weight.grad[mine]), ("gate bias", net.gates.bias.grad[mine])]
    if name == "star":
        found += [(n, p.grad[scenario]) for n, p in net.named_parameters() if n.endswith(("_SOD", "_SO", "_SD"))]
    assert found
    return found


@every_backbone
@pytest.mark.parametrize("scenario", range(SCENARIOS))
def test_rows_move_only_their_own_scenarios_parameters(name: str, scenario: int):
    net = made(name).eval()
    x_BD, _ = rows(64)
    net(x_BD, torch.full((len(x_BD),), scenario)).sum().backward()
    for other in range(SCENARIOS):
        for parameter, grad in own_parameters(name, net, other):
            moved = grad is not None and bool((grad != 0).any())
            assert moved == (other == scenario), f"scenario {other}: {parameter}"


@every_backbone
def test_gradient_reaches_every_parameter(name: str):
    net = made(name).train()
    x_BD, _ = rows(400)
    torch.manual_seed(0)
    scores = net(x_BD, torch.arange(400) % SCENARIOS)
    (scores * torch.randn(400)).sum().backward()
    still = [n for n, p in net.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert not still


@every_backbone
def test_empty_scenarios_and_an_empty_batch_are_fine(name: str):
    net = made(name).train()
    x_BD, _ = rows(8)
    assert torch.isfinite(net(x_BD, torch.full((8,), 3))).all()
    assert net(x_BD[:0], torch.zeros(0, dtype=torch.int64)).shape == (0,)


@every_backbone
def test_dropout_works_in_training_alone(name: str):
    net = made(name)
    x_BD, scenario_B = rows()
    assert not torch.equal(net.train()(x_BD, scenario_B), net(x_BD, scenario_B))
    assert torch.equal(net.eval()(x_BD, scenario_B), net(x_BD, scenario_B))


@every_backbone
def test_backbones_have_no_statistics_of_batches(name: str):
    assert not list(made(name).buffers())


@every_backbone
def test_the_seed_decides_the_initial_weights(name: str):
    one, two = made(name), made(name)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_star_starts_with_all_scenarios_alike():
    torch.manual_seed(0)
    net = backbones.build(WIDTH, SCENARIOS, model_config(backbone="star")).eval()
    scores = net(rows(1)[0].expand(SCENARIOS, -1), torch.arange(SCENARIOS))
    torch.testing.assert_close(scores, scores[:1].expand(SCENARIOS))


def test_row_groups_split_and_join_are_inverse():
    group_B = torch.tensor([2, 0, 2, 4, 0, 2])
    rows_BD = torch.arange(12).view(6, 2)
    groups = RowGroups(group_B, 5)
    parts = groups.split(rows_BD)
    assert [part[:, 0].tolist() for part in parts] == [[2, 8], [], [0, 4, 10], [], [6]]
    assert torch.equal(groups.join(parts), rows_BD)
