"""Relational losses written from their formulas, one row and one pair after the other."""

import torch

CASES = {
    "fda": ("fda", {"tau": 0.2, "bias": 4.0}),
    "fda-frozen-units": ("fda", {"units": "frozen", "slope": 1.7}),
    "match": ("match", {"slope": 1.7}),
    "kl": ("kl", {"temperature": 0.6}),
    "rkd": ("rkd", {}),
    "correlation": ("correlation", {}),
}
"""Regularisers on relations with the options that :func:`row_loss` has: name, options."""

KEEP_THE_FROZEN = ["match", "kl", "rkd", "correlation"]
"""The cases whose minimum is at the frozen features."""


def features(n, seed=0, dtype=torch.float64, cone=0.5, d=12):
    """Features [n, d] of different norms around a common direction."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x += cone * torch.randn(1, d, generator=generator, dtype=torch.float64)
    return (x * (1 + torch.arange(n).unsqueeze(1) % 3)).to(dtype)


def cosine(a, b):
    """cos(a, b) of two vectors."""
    return (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()


def row_loss(case, c, w_hat, near, theta, sigma):
    """The loss of one row.

    Args:
        case: a key of ``CASES``.
        c, w_hat: tuned and frozen cosines of the pairs that count [P].
        near: which of them are neighbours [P].
        theta, sigma: threshold and spread of the row.
    """
    w = torch.where(near, w_hat.clamp(min=0.0), -w_hat.clamp(min=0.0))
    z, v = (c - theta) / sigma, (w_hat - theta) / sigma
    if case == "fda":
        return (1 + (w * (-c / 0.2 + 4.0)).exp()).log().mean()
    if case == "fda-frozen-units":
        return (1 + (-1.7 * w / w.abs().mean().clamp(min=1e-6) * z).exp()).log().mean()
    if case == "match":
        q, p, at_frozen = ((1 + (-1.7 * s).exp()) ** -1 for s in (v, z, v))
        entropy = q * at_frozen.log() + (1 - q) * (1 - at_frozen).log()
        return (entropy - q * p.log() - (1 - q) * (1 - p).log()).mean()
    if case == "kl":
        p, q = (v / 0.6).exp(), (z / 0.6).exp()
        p, q = p / p.sum(), q / q.sum()
        return (p * (p / q).log()).sum()
    if case == "rkd":
        e = (c - w_hat).abs() / sigma
        return torch.where(e < 1, 0.5 * e * e, e - 0.5).mean()
    a, b = c - c.mean(), w_hat - w_hat.mean()
    return 1 - (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()


def relation_loss(
    case, x, frozen, k, columns=None, column_anchors=None, scale="pooled", proxies=None
):
    """Mean over rows of :func:`row_loss`.

    Args:
        case: a key of ``CASES``.
        x, frozen: tuned and frozen rows.
        k: neighbours, no more than the clamp allows.
        columns, column_anchors: tuned and frozen columns of the cross-modal form.
        scale: "pooled" or "row".
        proxies: ``Proxies`` of the columns, whose similarities then count too.
    """
    own = columns is None
    columns, column_anchors = (x, frozen) if own else (columns, column_anchors)
    rows = []
    for i in range(len(x)):
        js = [j for j in range(len(columns)) if not (own and j == i)]
        w_hat = torch.stack([cosine(frozen[i], column_anchors[j]) for j in js])
        c = torch.stack([cosine(x[i], columns[j]) for j in js])
        ranked = sorted(range(len(js)), key=lambda p: (-w_hat[p].item(), p))
        near = torch.tensor([p in ranked[:k] for p in range(len(js))])
        theta = (w_hat[ranked[k - 1]] + w_hat[ranked[min(k, len(js) - 1)]]) / 2
        rows.append((c, w_hat, near, theta))
    variances = [((w_hat - w_hat.mean()) ** 2).mean() for _, w_hat, _, _ in rows]
    pooled = sum(variances) / len(variances)
    total = 0.0
    for i, (c, w_hat, near, theta) in enumerate(rows):
        sigma = (variances[i] if scale == "row" else pooled).sqrt()
        if proxies is not None:
            made = with_unit_columns(proxies.weights[i].detach(), columns)
            frozen_made = with_unit_columns(proxies.weights[i].detach(), column_anchors)
            c = torch.cat([c, torch.stack([cosine(x[i], p) for p in made])])
            if case in KEEP_THE_FROZEN:
                estimate = [cosine(frozen[i], p) for p in frozen_made]
            else:  # the paper's pooled estimate: the anchor itself has weight 0
                others = torch.stack([cosine(frozen[i], y) for y in column_anchors])
                estimate = [(a * others).sum() for a in proxies.weights[i].detach()]
            w_hat = torch.cat([w_hat, torch.stack(estimate)])
            near = torch.cat([near, torch.arange(len(made)) < proxies.positives])
        total = total + row_loss(case, c, w_hat, near, theta, sigma)
    return total / len(x)


def with_unit_columns(weights, columns):
    """The proxies themselves [P, d] from pooling weights [P, M] and columns [M, d]."""
    return [sum(a * y / (y * y).sum().sqrt() for a, y in zip(row, columns)) for row in weights]
