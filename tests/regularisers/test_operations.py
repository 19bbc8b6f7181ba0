"""How many operations a step of the term takes, and that none waits for a device."""

import pytest
import torch
from operations import count_operations, synchronisations

from proxyfda.regularisers import create
from proxyfda.regularisers.constants import FIRST_BATCHES

older = pytest.mark.skipif(
    torch.__version__.startswith("1."), reason="older versions make other operations of the same"
)
OPERATIONS = {
    ("fda", "frozen images"): 60,
    ("fda", "tuned images"): 66,
    ("proxy_fda", "frozen images"): 515,
    ("proxy_fda", "tuned images"): 523,
}
"""Most operations of one step in the spaces text and cross, forward and backward."""


def step_of(name, images):
    """A step in the spaces text and cross, the graph of the texts made beforehand, after the steps
    in which constants are derived."""
    stream = torch.Generator().manual_seed(0)

    def features(n):
        return torch.randn(n, 64, generator=stream)

    reg = create(name, 64)
    texts, text_anchors, tuned, anchors = features(20), features(20), features(16), features(16)
    texts.requires_grad_()
    if images == "frozen images":  # of a frozen encoder, such as CoOp's: they are their own anchors
        tuned = anchors
    else:
        tuned.requires_grad_()
    graph = reg.graph(text_anchors)
    leaves = [x for x in (texts, tuned, *reg.parameters()) if x.requires_grad]
    ones = torch.ones(())

    def step():
        losses = [
            *reg.terms(texts, graph=graph).values(),
            *reg.terms(tuned, anchors, columns=texts, column_anchors=text_anchors).values(),
        ]
        torch.autograd.grad(losses, leaves, [ones] * len(losses))

    for _ in range(FIRST_BATCHES + 1):
        step()
    return step


@older
@pytest.mark.parametrize("name, images", OPERATIONS)
def test_number_of_operations(name, images):
    counts = count_operations(step_of(name, images))
    assert sum(counts.values()) <= OPERATIONS[name, images], counts


@pytest.mark.parametrize("images", ["frozen images", "tuned images"])
@pytest.mark.parametrize("name", ["fda", "proxy_fda", "rkd", "match", "kl", "correlation"])
def test_nothing_waits_for_a_device(name, images):
    assert synchronisations(step_of(name, images)) == []


@older
def test_what_is_counted():
    x = torch.randn(4, 3, requires_grad=True)

    def step():
        y = x.t().reshape(12).view(3, 4)  # a copy and two views
        torch.autograd.grad((y * 2.0).sum(), x, torch.ones(()))

    counts = count_operations(step)
    # sum's backward pass expands, that of the copy may be a view.
    assert counts == {"reshape": 1, "mul": 2, "sum": 1, "ones": 1}
    assert synchronisations(lambda: x.detach().sum().item()) == ["item", "_local_scalar_dense"]
    assert "nonzero" in synchronisations(lambda: x.detach()[x.detach() > 0])
