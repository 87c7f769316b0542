from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from llm4msr.config import BACKBONES
from llm4msr.errors import ConfigError
from llm4msr.model import backbones
from llm4msr.model.backbones.base import Dropout, GateUnit, ReluDropout, mix, tower
from llm4msr.model.backbones.row_groups import PaddedGroups, RowGroups
from tests.support.data import model_config

WIDTH, SCENARIOS = 12, 5
"""No other size in a small backbone is 5: what has 5 parts has one for each scenario."""

every_backbone = pytest.mark.parametrize("name", sorted(BACKBONES))


def made(name: str, seed: int = 1) -> nn.Module:
    """A backbone that has moved away from its initial values, so that scenarios differ."""
    torch.manual_seed(seed)
    net = backbones.build(WIDTH, SCENARIOS, model_config(backbone=name))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def rows(count: int = 37) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(2)
    return torch.randn(count, WIDTH, generator=made), torch.randint(SCENARIOS, (count,), generator=made)


def only(scenario: int, count: int = 64) -> tuple[Tensor, Tensor]:
    """Rows of one scenario."""
    return rows(count)[0], torch.full((count,), scenario)


@every_backbone
def test_scores_are_the_same_whether_or_not_gradients_are_taken(name: str):
    net = made(name).eval()
    with torch.inference_mode():
        without = net(*rows())
    torch.testing.assert_close(net(*rows()).detach(), without, atol=1e-6, rtol=0)


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
    """But for the single network, which knows the scenario as a feature alone, and that is the same here."""
    net = made(name).eval()
    x_BD = rows(1)[0].expand(SCENARIOS, -1)
    scores = net(x_BD, torch.arange(SCENARIOS))
    assert len(set(scores.tolist())) == (1 if name == "single" else SCENARIOS)


def movers(name: str) -> dict[str, set[int]]:
    """For each parameter, or part of one that belongs to a scenario: which scenarios' rows give it a gradient."""
    net, found = made(name).eval(), {}
    for scenario in range(SCENARIOS):
        net.zero_grad()
        net(*only(scenario)).sum().backward()
        for parameter, tensor in net.named_parameters():
            assert tensor.grad is not None, f"{parameter}: training on several workers would stop here"
            parts = tensor.grad if len(tensor) == SCENARIOS else [tensor.grad]
            for at, part in enumerate(parts):
                found.setdefault(f"{parameter}[{at}]", set()).update({scenario} if part.any() else ())
    return found


@every_backbone
def test_rows_move_what_is_shared_and_what_is_their_own_scenarios(name: str):
    found = movers(name)
    if name == "aitm":  # a scenario's lower network also learns from those that it tells
        for scenario, listeners in enumerate([{0}, {1, 2}, {2, 3}, {3, 4}, {4, 0, 1}]):
            lower = [part for part in found if part.startswith(f"bottoms.{scenario}.")]
            assert [found.pop(part) for part in lower] == [listeners] * 4
    assert {len(scenarios) for scenarios in found.values()} <= {1, SCENARIOS}
    owned = Counter(min(scenarios) for scenarios in found.values() if len(scenarios) == 1)
    assert owned.keys() == (set() if name == "single" else set(range(SCENARIOS)))
    assert len(set(owned.values())) <= 1  # every scenario owns as much as any other


@pytest.mark.parametrize("name", sorted(BACKBONES.keys() - {"single", "epnet", "adasparse"}))  # without such parts
def test_a_row_passes_its_own_scenarios_parts_alone(name: str):
    net, seen = made(name).eval(), Counter[str]()
    for list_name, parts in net.named_modules():
        if isinstance(parts, nn.ModuleList) and len(parts) == SCENARIOS:
            for part in parts:
                part.register_forward_hook(lambda _, given, __, at=list_name: seen.update({at: len(given[0])}))
    x_BD, scenario_B = rows()
    with torch.no_grad():  # with gradients the parts of all scenarios are one step, and none is called
        net(x_BD, scenario_B)
    assert seen
    for list_name, count in seen.items():
        twice = (name, list_name) == ("aitm", "bottoms")  # those of the scenario that tells, too
        assert count == (1 + twice) * len(x_BD), list_name


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
    assert torch.isfinite(net(*only(3, 8))).all()
    assert net(*only(0, 0)).shape == (0,)
    net.eval()
    with_gradient = net(*only(3, 8))
    with torch.inference_mode():
        assert torch.equal(net(*only(3, 8)), with_gradient)
        assert net(*only(0, 0)).shape == (0,)


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
def test_the_seed_decides_the_initial_weights_and_the_dropout(name: str):
    one, two, other = (made(name, seed).train() for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    scores = []
    for net in (one, two, other):
        torch.manual_seed(3)
        scores.append(net(*rows()))
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


@every_backbone
def test_saved_weights_score_the_same_bit_for_bit(name: str):
    one, other = made(name).eval(), made(name, seed=2).eval()
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(one.state_dict())))
    assert torch.equal(one(*rows()), other(*rows()))


@every_backbone
@pytest.mark.parametrize("shape", [{"experts": 1}, {"hidden": (6,)}, {"hidden": (16, 9, 7), "experts": 3}])
def test_other_shapes_work(name: str, shape: dict):
    net = backbones.build(WIDTH, 2, model_config(backbone=name, **shape))
    scores = net(rows(8)[0], torch.arange(8) % 2)
    scores.sum().backward()
    assert scores.shape == (8,)


@pytest.mark.parametrize("name", ["epnet", "ppnet"])
def test_gates_read_the_features_and_do_not_train_them(name: str):
    gradients = []
    for cut in (False, True):
        net = made(name).eval()
        for module in net.modules():
            if isinstance(module, GateUnit) and cut:
                module.register_forward_hook(lambda _, __, factor: factor.detach())
        x_BD, scenario_B = rows()
        net(x_BD.requires_grad_(), scenario_B).sum().backward()
        gradients.append(x_BD.grad)
    assert torch.equal(*gradients)


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


def test_row_groups_leave_out_empty_groups_unless_gradients_are_taken():
    calls: list[int] = []

    def layer(part: Tensor) -> Tensor:
        calls.append(len(part))
        return 10 * part

    groups, rows_BD = RowGroups(torch.tensor([2, 0, 2]), 4), torch.tensor([[1.0], [2.0], [3.0]])
    assert groups.through([layer] * 4, rows_BD).tolist() == [[10], [20], [30]]
    assert calls == [1, 0, 2, 0]
    with torch.no_grad():
        assert groups.through([layer] * 4, rows_BD).tolist() == [[10], [20], [30]]
    assert calls[4:] == [1, 2]


@pytest.mark.parametrize("group_B", [[2, 0, 2, 4, 0, 2], [0, 0, 1], [3], []])
def test_padded_groups_repeat_rows_of_each_group_and_leave_them_out_again(group_B: list[int]):
    rows_BD = torch.arange(2 * len(group_B)).view(-1, 2)
    groups = PaddedGroups(torch.tensor(group_B, dtype=torch.int64), 5)
    parts = groups.split(rows_BD)
    for group, part in enumerate(parts):
        own = [row[0] for row, at in zip(rows_BD.tolist(), group_B, strict=True) if at == group]
        assert part[:, 0].tolist() == own + own[-1:] * (16 - len(own) if own else 0)
    assert torch.equal(groups.join(parts), rows_BD)


def test_padded_groups_have_few_sizes():
    """A sixteenth is added at most, but for groups of less than 256."""
    sizes = {}
    for count in (1, 15, 16, 17, 255, 256, 257, *range(1500, 1700), 100_000):
        sizes[count] = PaddedGroups(torch.zeros(count, dtype=torch.int64), 1).sizes[0]
    assert all(count <= size <= max(count + 15, count * 17 / 16) for count, size in sizes.items())
    assert len({sizes[count] for count in range(1500, 1700)}) == 4


def test_what_is_added_to_groups_has_no_part_in_the_gradient():
    x_BD, scenario_B = rows(100)
    gradients = []
    for kind in (RowGroups, PaddedGroups):
        torch.manual_seed(0)
        given_BD, layers = x_BD.clone().requires_grad_(), [nn.Linear(WIDTH, 1) for _ in range(SCENARIOS)]
        kind(scenario_B, SCENARIOS).through(layers, given_BD).square().sum().backward()
        gradients.append([given_BD.grad, *(layer.weight.grad for layer in layers)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_the_linear_layers_of_groups_are_those_of_each_group():
    x_BD, scenario_B = rows(64)
    scenario_B[scenario_B == 1] = 2  # one is empty
    groups, tensors = RowGroups(scenario_B, SCENARIOS), (torch.randn(SCENARIOS, 7, WIDTH), torch.randn(SCENARIOS, 7))
    gradients = []
    for at_once in (True, False):
        x, weight, bias = (tensor.clone().requires_grad_() for tensor in (x_BD, *tensors))
        pairs = zip(weight, bias, strict=True)
        layers = [partial(nn.functional.linear, weight=weight_OD, bias=bias_O) for weight_OD, bias_O in pairs]
        y = groups.linear(x, weight, bias) if at_once else groups.through(layers, x)
        (y * torch.arange(7)).sum().backward()
        gradients.append((y.detach(), x.grad, weight.grad, bias.grad))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_nets_of_groups_give_and_train_what_each_would_alone(autocast: bool):
    x_BD, scenario_B = rows(64)
    scenario_B[scenario_B == 1] = 2  # one is empty
    nets = nn.ModuleList(tower(WIDTH, [6, 5], dropout=0.0) for _ in range(SCENARIOS))
    results = []
    for layers in (list(nets), [partial(lambda net, part_BD: net(part_BD), net) for net in nets]):
        nets.zero_grad()
        x = x_BD.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y_B1 = RowGroups(scenario_B, SCENARIOS).through(layers, x)
        assert y_B1.dtype == torch.float32
        (y_B1 * scenario_B[:, None]).sum().backward()
        results.append([y_B1.detach(), x.grad, *(parameter.grad.clone() for parameter in nets.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **({"rtol": 0.02, "atol": 0.02} if autocast else {}))


class Doubled(nn.Linear):
    def forward(self, x_BD: Tensor) -> Tensor:
        return 2 * super().forward(x_BD)


@pytest.mark.parametrize("deeper", [False, True])
@pytest.mark.parametrize("unlike", [nn.Linear(WIDTH, 3, bias=False), nn.Tanh(), Doubled(WIDTH, 3)])
def test_groups_may_have_nets_of_any_kind(unlike: nn.Module, deeper: bool):
    x_BD, scenario_B = rows(64)
    nets = [nn.Sequential(nn.Linear(WIDTH, WIDTH), unlike) for _ in range(SCENARIOS)]
    if deeper:
        nets[0] = nn.Sequential(nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH), unlike)
    y_BO = RowGroups(scenario_B, SCENARIOS).through(nets, x_BD)
    for row_D, y_O, scenario in zip(x_BD, y_BO, scenario_B.tolist(), strict=True):
        torch.testing.assert_close(nets[scenario](row_D), y_O)


@every_backbone
def test_products_in_bfloat16_score_nearly_the_same_and_train_every_parameter(name: str):
    """As the ranker has it in training: rows in the order of their scenarios, features cast once."""
    net = made(name).eval()
    x_BD, scenario_B = rows(400)
    scenario_B, order_B = scenario_B.sort()
    x_BD = x_BD[order_B]
    exact_B = net(x_BD, scenario_B).detach()
    with torch.autocast("cpu", torch.bfloat16):
        rounded_B = net(x_BD.bfloat16(), scenario_B)
    assert rounded_B.dtype == torch.float32
    assert not torch.equal(rounded_B, exact_B)
    assert (rounded_B - exact_B).abs().mean() < 0.02 * exact_B.std()
    (rounded_B * torch.randn(400)).sum().backward()
    assert {parameter.grad.dtype for parameter in net.parameters()} == {torch.float32}
    still = [n for n, p in net.named_parameters() if not (p.grad != 0).any()]
    assert not still


def test_mix_weighs_with_the_softmax():
    outputs_BXH = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]).expand(3, 2, 2)
    gate_BX = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    torch.testing.assert_close(mix(gate_BX, outputs_BXH.unbind(1)), torch.tensor([[2.0, 3.0], [1.0, 2.0], [3.0, 4.0]]))


@pytest.mark.parametrize("shape", [(1,), (3,), (7, 5), (64, 9)])
def test_dropout_scales_what_stays_and_its_gradient(shape: tuple[int, ...]):
    x = torch.ones(shape, requires_grad=True)
    y = Dropout(0.25)(x)
    y.sum().backward()
    assert y.shape == shape
    assert {round(value, 5) for value in y.flatten().tolist()} <= {0.0, round(4 / 3, 5)}
    assert torch.equal(x.grad, y)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9999999])
def test_relu_with_dropout_is_one_after_the_other_bit_for_bit(share: float):
    x_BD, results = torch.randn(33, 9), []
    for layer in (ReluDropout(share), nn.Sequential(nn.ReLU(), Dropout(share))):
        torch.manual_seed(0)
        given_BD = x_BD.clone().requires_grad_()
        y_BD = layer(given_BD * 1)
        y_BD.square().sum().backward()
        results.append((y_BD, given_BD.grad, layer.eval()(x_BD.clone())))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_dropout_drops_that_share_independently(share: float):
    torch.manual_seed(0)
    kept = Dropout(share)(torch.ones(1000, 1000)) > 0
    assert abs(kept.float().mean() - (1 - share)) < 3e-3
    side_by_side = (kept[:, 1:] & kept[:, :-1]).float().mean()
    assert abs(side_by_side - (1 - share) ** 2) < 3e-3
    assert (kept.float().mean(0) - (1 - share)).abs().max() < 0.08  # no column is favoured


def test_dropout_of_nothing_is_the_input_itself():
    x = torch.ones(3)
    assert Dropout(0.0)(x) is x
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.5)(torch.ones(0, 4)).shape == (0, 4)
    assert torch.isfinite(Dropout(0.9999999)(torch.ones(100))).all()


@pytest.mark.parametrize("name", ["mmeo", "", "a.b", ":Net", "a:", "a..b:Net", "a b:Net", "a:Net:x", "a:N.b", "a/b:N"])
def test_a_config_refuses_a_backbone_of_no_known_form(name: str):
    with pytest.raises(
        ValidationError, match=r"no such backbone.*; known are .*'mmoe', .* or your own as 'package.module:Class'"
    ):
        model_config(backbone=name)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_nets").mkdir()
    (tmp_path / "own_nets" / "linear.py").write_text(
        "from torch import nn\n\n\nclass Own(nn.Linear):\n"
        "    def __init__(self, width, scenarios, config):\n        super().__init__(width, scenarios)\n"
    )
    (tmp_path / "own_nets" / "broken.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own")
def test_a_class_of_ones_own_is_imported():
    net = backbones.build(WIDTH, SCENARIOS, model_config(backbone="own_nets.linear:Own"))
    assert type(net).__name__ == "Own"
    assert (net.in_features, net.out_features) == (WIDTH, SCENARIOS)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mmeo", r"no such backbone \(did you mean 'mmoe'\?\); known are"),
        ("linear", r"no such backbone; known are 'single', "),
        ("own_net.linear:Own", r"cannot import 'own_net.linear' \(No module named 'own_net'\); .* PYTHONPATH"),
        ("own_nets.linaer:Own", r"cannot import 'own_nets.linaer' \(No module named 'own_nets.linaer'\)"),
        ("own_nets.broken:Own", r"cannot import 'own_nets.broken' \(No module named 'no_such_package'\)"),
        ("own_nets.linear:Onw", r"'own_nets.linear' has no 'Onw'; did you mean 'Own'\?"),
        ("own_nets.linear:Missing", r"'own_nets.linear' has no 'Missing'; name a class that the module defines"),
        ("own_nets.linear:nn", r"'nn' is no torch.nn.Module; derive your class from it"),
        ("collections:Counter", r"'Counter' is no torch.nn.Module"),
    ],
)
def test_build_says_what_is_wrong(name: str, message: str):
    wanted = model_config().model_copy(update={"backbone": name})
    with pytest.raises(ConfigError, match=f"^model.backbone = '{name}': .*{message}"):
        backbones.build(WIDTH, SCENARIOS, wanted)
