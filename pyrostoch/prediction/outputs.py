"""What a network itself returns, averaged over draws: for losses, whose targets have no distribution to average."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils import _pytree as pytree

from pyrostoch._checks import check_finite
from pyrostoch._inputs import to_device
from pyrostoch._manual import see
from pyrostoch._structure import flat_inputs, with_labels
from pyrostoch.effects.trees import leaves_of
from pyrostoch.infer.elbo import MOMENTS
from pyrostoch.infer.items import check_known_classes
from pyrostoch.infer.known_labels import known_labels
from pyrostoch.likelihoods.loss import LossDistribution
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.batched_sampling import PosteriorSampler
from pyrostoch.prediction.inputs import compute_device, split
from pyrostoch.prediction.readouts import check_guide, evaluating, parse_mode, seeded
from pyrostoch.protocols import Guide, Inputs, Output

__all__ = ["outputs"]


def outputs(
    model: BayesianModel,
    guide: Guide,
    x: Inputs,
    *,
    mode: str = "mc:1",
    batch_size: int = 1000,
    device: str | torch.device | None = None,
    seed: int | None = 0,
    labels: Tensor | None = None,
) -> Output:
    r"""What a network returns, for a model whose likelihood is a `Loss`: of one draw, or the mean of several.

    A loss has no distribution of targets that `predict` could average. What is averaged here are the tensors that the
    network returns, $\frac{1}{K} \sum_k f(x; w_k)$, in its own form.

    Args:
        model: A model with the likelihood `likelihoods.Loss`.
        guide: Its guide.
        x: Inputs, as `predict` takes them.
        mode: `"mc:K"` for the mean of K draws, `"mean"` or `"noise-free"`.
        batch_size: Number of examples that run through the network at a time.
        device: The model's device; found by default.
        seed: Seed of the draws; torch's random state is restored afterwards.
        labels: As in `predict`.

    Returns:
        Tensors with the examples on their first axis, nested as the network nests them.

    Raises:
        TypeError: The likelihood is no loss, or the network returns other things than tensors of examples.
        ValueError: The mode is unknown, or a tensor of the output has another number of examples.

    Example:
        >>> import pyrostoch as ps
        >>> loss = ps.likelihoods.Loss(lambda output, y: (output["a"] - y).square().sum(1))
        >>> class Net(torch.nn.Linear):
        ...     def forward(self, x):
        ...         return {"a": super().forward(x)}
        >>> model = BayesianModel(Net(2, 3), prior=ps.priors.Normal(), likelihood=loss, num_data=10)
        >>> outputs(model, ps.guides.Additive(model), torch.zeros(5, 2), mode="mc:4")["a"].shape
        torch.Size([5, 3])
    """
    check_guide(guide)
    name, draws = parse_mode(mode)
    if name in MOMENTS:
        raise ValueError(f"outputs mode={mode!r}: a loss reads no moments; use 'mc:K', 'mean' or 'noise-free'")
    given = flat_inputs(x, getattr(model, "target", None))
    if labels is not None:
        given = with_labels(given, check_known_classes(labels, None, "outputs labels"))
    target = compute_device(given, model, guide, device)
    check_finite("inputs x", given)
    form = _Form()
    found: list[list[Tensor]] = []
    with known_labels(model, None if labels is None else "known"), seeded(seed, target), evaluating(model, guide):
        sampler = PosteriorSampler(model, guide, name, draws)
        for part in _pieces(model, given, batch_size, target, sampler):
            total: list[Tensor] | None = None
            for statistics in sampler.run(part, form.statistics):
                own = [value / sampler.num_samples for value in statistics.values()]
                total = own if total is None else [a + b for a, b in zip(total, own, strict=True)]
            found.append(total or [])
    return form.tree([torch.cat(parts) for parts in zip(*found, strict=True)])


def _pieces(
    model: BayesianModel, x: Any, batch_size: int, device: torch.device, sampler: PosteriorSampler
) -> Iterator[Any]:
    for batch, _ in split(model, x, None, batch_size):
        for piece, _ in sampler.split_batch(to_device(batch, device)):
            yield piece


class _Form:
    """The form of a network's output, as it was in the latest pass."""

    def __init__(self) -> None:
        self._spec: pytree.TreeSpec | None = None

    def statistics(self, distribution: Distribution) -> dict[str, Tensor]:
        """The tensors of an output."""
        base = getattr(distribution, "base_dist", distribution)
        if not isinstance(base, LossDistribution):
            raise TypeError(
                f"outputs: expected a model whose likelihood is a Loss, got {type(base).__name__}; predict() gives "
                f"probabilities and means of others{see('how-to/write_a_likelihood')}"
            )
        leaves, self._spec = pytree.tree_flatten(base.output)
        count = base.batch_shape[0]
        for leaf in leaves_of(base.output):
            if not isinstance(leaf, Tensor) or leaf.dim() == 0 or len(leaf) != count:
                got = f"a tensor of shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
                raise TypeError(f"outputs: expected tensors with {count} examples from the network, got {got}")
        return {str(index): leaf for index, leaf in enumerate(leaves)}

    def tree(self, leaves: list[Tensor]) -> Output:
        """Tensors in the form of the output."""
        if self._spec is None:
            raise ValueError("outputs: expected at least one example, got none")
        result: Output = pytree.tree_unflatten(leaves, self._spec)
        return result
