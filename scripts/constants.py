"""What τ and b make of Eq. 2: pull against push, and what is left of the features.

    python scripts/constants.py                              # random features with CLIP's cosines
    python scripts/constants.py --features frozen.pt --k 8   # your own [N, d]: what is derived

The last line gives the derived constants, to be set as TRAINER.PROXYFDA.TAU and BIAS (or leave it
to TRAINER.PROXYFDA.CONSTANTS derived). The table has, for each choice of τ and b,

* pull, push: sum of |dL/dc| over the neighbours and over the others of a row at the frozen
  features, mean over rows;
* kept: share of the K frozen neighbours that are still neighbours after the features, free to go
  anywhere, have minimised Eq. 2 alone (Adam), and the mean cosine to where they were.

Learned constants take steps beside the features, on the tuned similarities or on the frozen ones;
their τ and b are those at the end. Random features: 16 classes x 4 around a common direction, in 4
groups, cosines 0.5 to 0.9 as those of CLIP's images; mean over the seeds.
"""

from __future__ import annotations

import argparse
import os.path as osp
import sys

sys.path.insert(0, osp.dirname(osp.dirname(osp.abspath(__file__))))

import torch
from counts import count
from tabulate import tabulate
from torch.nn import functional as F

from proxyfda import FDA, NeighbourGraph, derive_constants
from proxyfda.diagnostics import neighbour_overlap
from proxyfda.neighbours import Relations
from proxyfda.regularisers.constants import LearnedConstants, eq2_row_losses
from proxyfda.regularisers.relations import relation_loss
from proxyfda.utils.errors import BadValue, NotFound, show_user_errors

CHOICES = ["literal", "boundary", "balanced", "derived", "learned", "learned on frozen", "frozen"]


def clip_like(seed: int, classes: int = 16, images: int = 4, dim: int = 512) -> torch.Tensor:
    """Random unit features [classes * images, dim] with the cosines of CLIP's images."""
    stream = torch.Generator().manual_seed(seed)
    cone, groups, own = (torch.randn(n, dim, generator=stream) for n in (1, 4, classes))
    noise = torch.randn(classes * images, dim, generator=stream)
    centres = 1.1 * cone + 0.45 * groups[torch.arange(classes) % 4] + 0.5 * own
    return F.normalize(centres.repeat_interleave(images, 0) + 0.55 * noise, dim=1)


def pull_and_push(graph: NeighbourGraph, tau: float, bias: float) -> tuple[float, float]:
    """Sums of |dL/dc| over neighbours and over the others of a row, mean over the rows."""
    cosines = graph.similarities.clone().requires_grad_()
    eq2_row_losses(cosines, Relations(graph), tau, bias).sum().backward()
    size = cosines.grad.abs() * graph.count
    near, far = (size[mask].sum() / len(size) for mask in (graph.mask, graph.valid & ~graph.mask))
    return near.item(), far.item()


def balanced_bias(graph: NeighbourGraph, tau: float) -> float:
    """b at which pull and push are equal, by bisection."""
    low, high = -10 / tau, 10 / tau
    for _ in range(60):
        middle = (low + high) / 2
        pull, push = pull_and_push(graph, tau, middle)
        low, high = (low, middle) if pull > push else (middle, high)
    return middle


def constants_of(choice: str, graph: NeighbourGraph) -> tuple[float, float]:
    """τ and b that a choice starts with."""
    spread = graph.spread.mean().item()
    if choice == "boundary":
        return spread, graph.threshold.mean().item() / spread
    if choice == "balanced":
        return spread, balanced_bias(graph, spread)
    return derive_constants(graph) if choice == "derived" else (0.1, 10.0)


def measure(choice: str, frozen: torch.Tensor, k: int, steps: int, rate: float) -> list[float]:
    """τ, b, τ·b, pull, push, share of neighbours kept, cosine to the frozen features."""
    graph = NeighbourGraph(frozen, k)
    tau, bias = constants_of(choice, graph)
    learned = LearnedConstants(tau, bias) if choice.startswith("learned") else None
    regulariser = FDA(k=k, tau=tau, bias=bias, units="frozen" if choice == "frozen" else "cosine")
    features = frozen.clone().requires_grad_()
    optimiser = torch.optim.Adam([features], lr=3e-3)
    own = torch.optim.Adam(learned.parameters(), lr=rate) if learned else None
    for _ in range(steps):
        optimiser.zero_grad()
        if learned:

            def rows(cosines, relations):
                return eq2_row_losses(cosines, relations, *learned.values(), keep=False)

            relation_loss(rows, features, graph=graph).backward()
            own.zero_grad()
            seen = features if choice == "learned" else frozen
            learned.learn(seen, None, graph)["loss_constants"].backward()
            own.step()
        else:
            regulariser(features, graph=graph).backward()
        optimiser.step()
    if learned:
        tau, bias = (value.item() for value in learned.values())
    tuned = features.detach()
    kept = 100 * neighbour_overlap(frozen, tuned, k)
    found = [tau, bias, tau * bias, *pull_and_push(graph, tau, bias)]
    if choice == "frozen":
        found = [float("nan")] * 5
    return [*found, kept, F.cosine_similarity(frozen, tuned).mean().item()]


def features_of(path: str) -> object:
    """What a file of ``torch.save`` holds.

    Raises:
        NotFound: there is none.
        BadValue: it is damaged, or of another kind.
    """
    if not osp.isfile(path):
        raise NotFound(f"--features: there is no file {path}; save features [N, d] by torch.save")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch's, pickle's or the archive's
        raise BadValue(
            f"--features: {path} is damaged or no file of torch.save; save features [N, d] by it"
        ) from None


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--features", metavar="FILE", help="frozen features [N, d] by torch.save; None: random")
    add("--k", type=count, default=8)
    add("--seeds", type=count, default=3, help="draws of random features")
    add("--steps", type=count, default=600, help="of Adam, learning rate 0.003")
    add("--rate", type=float, default=1e-3, help="learning rate of learned constants")
    add("--threads", type=count, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.features:
        found = features_of(args.features)
        if not isinstance(found, torch.Tensor) or found.dim() != 2 or len(found) < 4:
            raise BadValue(f"{args.features} has no matrix of at least 4 features; save [N, d].")
        drawn = [F.normalize(found.float(), dim=1)]
    else:
        drawn = [clip_like(seed) for seed in range(args.seeds)]
    print("\n".join(f"{NeighbourGraph(frozen, args.k)!r}" for frozen in drawn))
    rows = []
    for choice in CHOICES:
        each = [measure(choice, frozen, args.k, args.steps, args.rate) for frozen in drawn]
        rows.append([choice, *(sum(column) / len(each) for column in zip(*each))])
    head = ["choice", "tau", "b", "tau*b", "pull", "push", "kept, %", "cosine"]
    print(tabulate(rows, head, floatfmt=("", ".4f", ".1f", ".3f", ".1f", ".1f", ".1f", ".3f")))
    tau, bias = derive_constants(NeighbourGraph(torch.cat(drawn[:1]), args.k))
    print(f"derived: TRAINER.PROXYFDA.TAU {tau:.5g} TRAINER.PROXYFDA.BIAS {bias:.5g}")
    return 0


if __name__ == "__main__":
    show_user_errors()
    sys.exit(main())
