import torch
from torch import nn

from launch.parameters import decay_groups


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.low = nn.Linear(4, 4)
        self.high = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.frozen = nn.Parameter(torch.zeros(4, 4), requires_grad=False)


def test_every_trainable_parameter_is_in_one_group_and_only_matrices_decay():
    net = Net()
    groups = decay_groups(net, 0.05)
    held = [p for group in groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == 7
    assert all(p is not net.frozen for p in held)
    decayed = [p for g in groups if g["weight_decay"] for p in g["params"]]
    assert {id(p) for p in decayed} == {id(net.low.weight), id(net.high.weight)}


def test_a_group_has_one_share_of_the_rate():
    groups = decay_groups(Net(), 0.05, lr_scale=lambda n: 0.5 if n.startswith("low") else 1.0)
    scales = {(g["lr_scale"], bool(g["weight_decay"])) for g in groups}
    assert scales == {(0.5, True), (0.5, False), (1.0, True), (1.0, False)}
    assert len({g["name"] for g in groups}) == len(groups)
