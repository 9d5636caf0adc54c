"""What a network itself returns, averaged over draws: for losses, whose targets have no distribution to average."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils import _pytree as pytree

from pyrostoch._checks import check_finite
from pyrostoch._inputs import count_examples, take_examples, to_device
from pyrostoch._manual import see
from pyrostoch._structure import flat_inputs, with_labels
from pyrostoch.effects.trees import leaves_of
from pyrostoch.infer.elbo import MOMENTS
from pyrostoch.infer.items import check_known_classes
from pyrostoch.infer.known_labels import check_labels_around, known_labels
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
    network returns, $\frac{1}{K} \sum_k f(x; w_k)$, in its own form. All examples have the same weights in a draw, and
    random activations of their own.

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
    averages = _Averages()
    with known_labels(model, None if labels is None else "known"), seeded(seed, target), evaluating(model, guide):
        check_labels_around(model, count_examples(given, model.in_dims))
        sampler = PosteriorSampler(model, guide, name, draws, joint=name == "mc")

        def pieces() -> Iterator[Any]:
            for batch, _ in split(model, given, None, batch_size):
                for piece, _ in sampler.split_batch(to_device(batch, target)):
                    yield piece

        first = next(pieces())
        if sampler.joint:  # all pieces have the same weights in a draw, as in one pass
            for chunk in sampler.draw_chunks(first):
                for index, piece in enumerate(pieces()):
                    averages.add(index, chunk.run(piece, averages.statistics))
        else:
            for index, piece in enumerate(pieces()):
                averages.add(index, sampler.run(piece, averages.statistics))
        size = count_examples(first, model.in_dims) or 0
        if len(averages.totals) > 1 and size > 1:
            # A tensor that belongs to all examples may happen to have as many entries as a piece has examples.
            next(sampler.run(take_examples(first, slice(size - 1), model.in_dims), averages.statistics))
    return averages.result(sampler.num_samples)


class _Averages:
    """Sums of what a network returns over draws, for each piece of a batch, and the form that it has."""

    def __init__(self) -> None:
        self.totals: list[list[Tensor]] = []
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

    def add(self, index: int, draws: Iterator[dict[str, Tensor]]) -> None:
        """Add draws of a piece."""
        for draw in draws:
            values = list(draw.values())
            if index == len(self.totals):
                self.totals.append(values)
                continue
            for value in values:
                if not value.is_floating_point() and not value.is_complex():
                    raise TypeError(
                        f"outputs: a tensor of {value.dtype} has no mean over several draws; use one draw, 'mc:1', or "
                        "return what it was made of"
                    )
            self.totals[index] = [a + b for a, b in zip(self.totals[index], values, strict=True)]

    def result(self, count: int) -> Output:
        """The means over so many draws, in the form of the output."""
        if self._spec is None:
            raise ValueError("outputs: expected at least one example, got none")
        found = [torch.cat(parts) for parts in zip(*self.totals, strict=True)]
        result: Output = pytree.tree_unflatten([part / count if count > 1 else part for part in found], self._spec)
        return result
