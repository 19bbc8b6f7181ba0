"""What a rank does in test_ranks.py, and the same written by hand in one process."""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from proxyfda import FrozenCopy, ProxyFDA, attach

RANKS, N, D, WEIGHT = 2, 8, 6, 0.7


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, D))
        self.head = nn.Linear(D, 3)

    def forward(self, images):
        return self.head(self.encoder(images))


def drift(model):
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5)))


def batch(rank, step, rows=N):
    stream = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(rows, 4, generator=stream), torch.randint(3, (rows,), generator=stream)


def rows_of(case, rank):
    """With one sample a rank has nothing to align."""
    return 1 if case == "nothing-to-align" and rank == 1 else N


BACKWARD_PASSES = {"accumulated": 2}
CASES = ["encoder", "wrapper", "accumulated", "nothing-to-align", "sharded"]
STEPS = 2


def by_hand(case):
    """Parameters after the steps, the mean over ranks of the gradients of hand-written sums."""
    model, regulariser = Model(), ProxyFDA(D, k=3, constants="given", proxy_seed=0)
    frozen, whole = FrozenCopy(model.encoder), FrozenCopy(model)
    drift(model)
    if case == "wrapper":
        regulariser = ProxyFDA(3, k=3, constants="given", proxy_seed=0)
    parameters = [*model.parameters(), *regulariser.parameters()]
    optimiser = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    number = 0
    for _ in range(STEPS):
        optimiser.zero_grad()
        for _ in range(BACKWARD_PASSES.get(case, 1)):
            number += 1
            for rank in range(RANKS):
                images, labels = batch(rank, number, rows_of(case, rank))
                features = model.encoder(images)
                logits = model.head(features)
                pair = (logits, whole) if case == "wrapper" else (features, frozen)
                term = regulariser(pair[0], pair[1](images))
                loss = F.cross_entropy(logits, labels) + WEIGHT * term
                (loss / RANKS / BACKWARD_PASSES.get(case, 1)).backward()
        optimiser.step()
    return [p.detach() for p in parameters]


def by_ranks(case, rank):
    model = Model()
    # Another generator on each rank, as without a seed: that of the first is taken.
    regulariser = ProxyFDA(3 if case == "wrapper" else D, k=3, constants="given", proxy_seed=rank)
    if case == "sharded":
        from torch.distributed.fsdp import fully_shard

        frozen = FrozenCopy(model.encoder)
        drift(model)
        fully_shard(model.encoder)
        fully_shard(model)
        runs = model
        handle = attach(model.encoder, regulariser, WEIGHT, anchors=frozen)
    else:
        runs = DistributedDataParallel(model)
        module = runs if case == "wrapper" else runs.module.encoder
        handle = attach(module, regulariser, WEIGHT)
        drift(model)
    parameters = [*model.parameters(), *regulariser.parameters()]
    optimiser = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    number, passes = 0, BACKWARD_PASSES.get(case, 1)
    for _ in range(STEPS):
        optimiser.zero_grad()
        for i in range(passes):
            number += 1
            images, labels = batch(rank, number, rows_of(case, rank))
            if i < passes - 1:
                with runs.no_sync():
                    (F.cross_entropy(runs(images), labels) / passes).backward()
            else:
                (F.cross_entropy(runs(images), labels) / passes).backward()
        optimiser.step()
    handle.remove()
    found = [p.detach() for p in parameters]
    return [p.full_tensor() if hasattr(p, "full_tensor") else p for p in found]


def main(rank, folder):
    torch.set_num_threads(1)
    store = "file://" + os.path.join(folder, "store")
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    found = {}
    for case in CASES:
        try:
            found[case] = by_ranks(case, rank)
        except ImportError as error:  # sharding of this kind is younger than some torch
            found[case] = str(error)
    torch.save(found, os.path.join(folder, f"rank{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()
