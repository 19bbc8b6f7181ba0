"""A small model with a term, and what a rank of a distributed training does with it.

Few imports: every rank is a new process.
"""

from __future__ import annotations

import os.path as osp

import torch
from torch import nn
from torch.nn import functional as F

from proxyfda import FDA, FrozenCopy, attach

RANKS, ROWS, DIM, STEPS, WEIGHT = 2, 8, 6, 3, 0.7


class Model(nn.Module):
    """A small encoder with a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, DIM))
        self.head = nn.Linear(DIM, 3)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [N, 4] to logits [N, 3]."""
        return self.head(self.encoder(rows))


def moved() -> tuple[Model, FrozenCopy]:
    """A model that is no longer where it was frozen."""
    model = Model()
    frozen = FrozenCopy(model.encoder)
    with torch.no_grad():
        for weight in model.encoder.parameters():
            stream = torch.Generator().manual_seed(5)
            weight.add_(0.3 * torch.randn(weight.shape, generator=stream))
    return model, frozen


def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [N, 4] and labels [N]."""
    stream = torch.Generator().manual_seed(number)
    return torch.randn(ROWS, 4, generator=stream), torch.randint(3, (ROWS,), generator=stream)


def by_hand(model: Model, frozen: FrozenCopy, regulariser, rows, labels) -> torch.Tensor:
    """The loss with the term in it."""
    features = model.encoder(rows)
    term = regulariser(features, frozen(rows))
    return F.cross_entropy(model.head(features), labels) + WEIGHT * term


def rank(number: int, folder: str, device: str, several: bool) -> None:
    """What a process of :func:`_ddp` does."""
    torch.set_num_threads(1)
    place = torch.device(device, number if several else 0) if device == "cuda" else device
    if several:
        torch.cuda.set_device(place)
    torch.distributed.init_process_group(
        "nccl" if several else "gloo",
        init_method="file://" + osp.join(folder, "store"),
        rank=number,
        world_size=RANKS,
    )
    model, frozen = moved()
    model.to(place)
    runs = nn.parallel.DistributedDataParallel(model)
    handle = attach(runs.module.encoder, FDA(k=3, constants="given"), WEIGHT, anchors=frozen)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        rows, labels = (tensor.to(place) for tensor in batch(RANKS * step + number))
        optimiser.zero_grad()
        F.cross_entropy(runs(rows), labels).backward()
        optimiser.step()
    handle.remove()
    state = {name: weight.cpu() for name, weight in model.state_dict().items()}
    torch.save(state, osp.join(folder, f"{number}.pt"))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
