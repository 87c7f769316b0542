from itertools import product

import pytest
import torch
from torch.nn import functional as F

from llm4msr.model.meta import KnowledgeCode, MetaLayer, MetaStack

D, OUT, K, B, S = 7, 5, 3, 11, 4


def perturbed(module: torch.nn.Module) -> torch.nn.Module:
    made = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=made))
    return module


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    group_B = torch.tensor([1, 3, 3, 0, 1, 1, 3, 0, 0, 1, 3])  # code 2 has no row
    return torch.randn(B, D, generator=made), torch.rand(S, K, generator=made) * 2 - 1, group_B


@pytest.mark.parametrize("rank", [0, 1, 4])
@pytest.mark.parametrize("zero", [False, True])
def test_forward_is_each_rows_generated_layer(rank: int, zero: bool):
    layer = perturbed(MetaLayer(D, OUT, K, rank, zero))
    x_BD, code_SK, group_B = inputs()
    code_BK = code_SK[group_B]
    weight_BOD, bias_BO = layer.generate(code_BK)
    assert weight_BOD.shape == (B, OUT, D)
    explicit = torch.stack([weight_BOD[i] @ x_BD[i] + bias_BO[i] for i in range(B)])
    torch.testing.assert_close(layer(x_BD, code_BK), explicit, atol=1e-4, rtol=1e-5)


def test_generated_weights_are_the_methods_formula():
    layer = perturbed(MetaLayer(D, OUT, K, 0, zero=False))
    _, code_SK, _ = inputs()
    weight_SOD, bias_SO = layer.generate(code_SK)
    for s in range(S):
        expected = layer.base.weight + sum(code_SK[s, j] * layer.weight_OKD[:, j] for j in range(K))
        torch.testing.assert_close(weight_SOD[s], expected)
        torch.testing.assert_close(bias_SO[s], layer.base.bias + layer.bias.weight @ code_SK[s])


def test_low_rank_weights_are_the_methods_formula():
    layer = perturbed(MetaLayer(D, OUT, K, 2, zero=False))
    _, code_SK, _ = inputs()
    weight_SOD, _ = layer.generate(code_SK)
    for s in range(S):
        mixed = torch.diag(layer.mix.weight @ code_SK[s])
        torch.testing.assert_close(weight_SOD[s], layer.base.weight + layer.up.weight @ mixed @ layer.down.weight)


@pytest.mark.parametrize(("rank", "layers"), list(product([0, 2], [1, 2, 3])))
def test_grouped_equals_forward(rank: int, layers: int):
    stack = perturbed(MetaStack(D, OUT, K, rank, layers))
    x_BD, code_SK, group_B = inputs()
    expected = stack(x_BD, code_SK[group_B])
    assert expected.shape == (B, OUT)
    torch.testing.assert_close(stack.grouped(x_BD, code_SK, group_B), expected, atol=1e-2, rtol=1e-4)
    one = stack.grouped(x_BD, code_SK[2:3], torch.zeros(B, dtype=torch.int64))
    torch.testing.assert_close(one, stack(x_BD, code_SK[2:3].expand(B, K)), atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize(("rank", "layers"), list(product([0, 2], [1, 2, 3])))
def test_stack_is_its_layers_with_silu_between(rank: int, layers: int):
    stack = perturbed(MetaStack(D, OUT, K, rank, layers))
    x_BD, code_SK, group_B = inputs()
    code_BK = code_SK[group_B]
    rows = []
    for i in range(B):
        x = x_BD[i]
        for at, layer in enumerate(stack.layers):
            (weight,), (bias,) = layer.generate(code_BK[i : i + 1])
            x = weight @ (F.silu(x) if at else x) + bias
        rows.append(x)
    torch.testing.assert_close(stack(x_BD, code_BK), torch.stack(rows), atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize(("rank", "layers"), list(product([0, 1, 8], [1, 2, 3])))
def test_stack_starts_at_zero_for_every_code(rank: int, layers: int):
    stack = MetaStack(D, OUT, K, rank, layers)
    x_BD, code_SK, group_B = inputs()
    assert torch.equal(stack(x_BD, code_SK[group_B]), torch.zeros(B, OUT))
    assert torch.equal(stack.grouped(x_BD, code_SK, group_B), torch.zeros(B, OUT))


@pytest.mark.parametrize(("rank", "layers"), list(product([0, 2], [1, 2])))
def test_stack_can_leave_zero(rank: int, layers: int):
    torch.manual_seed(0)
    stack = MetaStack(D, OUT, K, rank, layers)
    x_BD, code_SK, group_B = inputs()
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.1)
    start = [p.detach().clone() for p in stack.parameters()]
    for _ in range(4):
        loss = (stack(x_BD, code_SK[group_B]) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    still = [name for (name, p), old in zip(stack.named_parameters(), start, strict=True) if torch.equal(p, old)]
    assert not still


def test_code_is_the_methods_formula_and_bounded():
    torch.manual_seed(0)
    mean_Z, scale_Z = torch.randn(6), torch.rand(6) + 0.1
    coder = KnowledgeCode(mean_Z, scale_Z, K)
    z_BZ = torch.randn(B, 6).half()
    code = coder(z_BZ, torch.ones(B, dtype=torch.bool))
    projected = ((z_BZ.float() - mean_Z) / scale_Z) @ coder.project.weight.T
    torch.testing.assert_close(code, torch.tanh(F.layer_norm(projected, (K,))))
    assert code.dtype == torch.float32
    assert code.abs().max() < 1


def test_unknown_users_get_the_learned_default_code():
    torch.manual_seed(0)
    coder = KnowledgeCode(torch.zeros(6), torch.ones(6), K)
    with torch.no_grad():
        coder.default_K.copy_(torch.tensor([0.5, -1.0, 2.0]))
    known = torch.tensor([True, False, False])
    codes = coder(torch.randn(3, 6).half(), known)
    assert torch.equal(codes[1], torch.tanh(coder.default_K))
    assert torch.equal(codes[1], codes[2])
    assert not torch.equal(codes[0], codes[1])
    codes[1:].sum().backward()
    assert (coder.default_K.grad != 0).all()
    assert (coder.project.weight.grad == 0).all()
