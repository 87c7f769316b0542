import torch
from torch import nn

from llm4msr.training.optimizers import AdamW
from tests.unit.conftest import World
from tests.unit.training.test_loop import data


def test_steps_are_those_of_torch_to_the_last_bit(world: World):
    """Those of parameters without a gradient too: they stay, and have no state."""
    net = data(world, world.config).new_net(world.config)
    plain = [nn.Parameter(parameter.detach().clone()) for parameter in net.parameters()]
    train = world.config.train.model_copy(update={"sparse": False})
    ours = AdamW(net, train)
    theirs = torch.optim.AdamW(plain, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True)
    for step in range(3):
        for i, (parameter, copy) in enumerate(zip(net.parameters(), plain, strict=True)):
            parameter.grad = None if (i + step) % 3 == 0 or i == 1 else torch.randn_like(parameter)
            copy.grad = None if parameter.grad is None else parameter.grad.clone()
        ours.step()
        theirs.step()
    for (name, parameter), copy in zip(net.named_parameters(), plain, strict=True):
        assert torch.equal(parameter, copy)
        state = {key.removeprefix(f"{name}."): value for key, value in ours.state().items() if key.startswith(name)}
        assert state.keys() == theirs.state[copy].keys()
        assert all(torch.equal(value, theirs.state[copy][key]) for key, value in state.items())
