"""The part of a network that stays with the owner of the data, and the tensors that it sends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_finite, name_list
from pyrostoch._inputs import count_examples, take_examples, to_device
from pyrostoch._manual import see
from pyrostoch._seeds import mixed_seed
from pyrostoch._structure import flat_inputs, with_labels
from pyrostoch.effects.trees import leaves_of
from pyrostoch.infer.elbo import MOMENTS
from pyrostoch.infer.items import check_known_classes
from pyrostoch.infer.known_labels import check_labels_around, known_labels
from pyrostoch.model import BayesianModel
from pyrostoch.obfuscate.cut import Cut
from pyrostoch.prediction.batched_sampling import PosteriorSampler
from pyrostoch.prediction.inputs import compute_device, split
from pyrostoch.prediction.readouts import check_guide, device_of, evaluating, parse_mode, seeded
from pyrostoch.protocols import FlatInputs, Guide, Inputs

__all__ = ["Client", "alike", "chosen_rows", "on_rows"]

# Examples on which it is tried whether an input reaches the output beside the cut.
_TRIED = 64


class Client:
    r"""The part of a network up to a cut, which the owner of the data runs: $z \sim q(z \mid x)$ is all that leaves it.

    The cut goes through one module or several, whose outputs are sent; all else runs elsewhere. What is sent is what
    the rest of the network reads: behind a stochastic layer its draws, behind a merge what was merged. Weights are
    drawn from the guide for each query, activations for each example.

    Args:
        model: The model.
        guide: Its guide.
        at: Name of the module whose output is sent, or the names of several.

    Raises:
        ValueError: There is no such module, or inputs count the examples on another axis.

    Example:
        >>> import pyrostoch as ps
        >>> net = torch.nn.Sequential(ps.layers.StochasticAdditive(3, scale=0.5), torch.nn.Linear(3, 2))
        >>> model = BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=4)
        >>> client = Client(model, ps.guides.Additive(model), at="0")
        >>> sent, = client.send(torch.zeros(4, 3))
        >>> sent.shape, bool((sent == 0).any())
        (torch.Size([4, 3]), False)
    """

    def __init__(self, model: BayesianModel, guide: Guide, at: str | Sequence[str]) -> None:
        check_guide(guide)
        if model.in_dims != 0:
            raise ValueError(
                f"Client: expected a model whose inputs count the examples on their first axis, got in_dims="
                f"{model.in_dims}; what is sent belongs to single examples{see('how-to/audit_a_layer')}"
            )
        self.model, self.guide = model, guide
        self.at = (at,) if isinstance(at, str) else tuple(at) if isinstance(at, Sequence) else ()
        if not self.at or not all(isinstance(name, str) and name for name in self.at):
            raise ValueError(
                f"Client at: expected the name of a module of the network, or of several, got {at!r}"
                f"{see('how-to/audit_a_layer')}"
            )
        Cut(model.net, self.at)  # refuses names of no module

    def send(
        self,
        x: Inputs,
        *,
        labels: Tensor | None = None,
        mode: str = "mc:1",
        seed: int | None = 0,
        batch_size: int = 1000,
        device: str | torch.device | None = None,
    ) -> tuple[Tensor, ...]:
        """What leaves the client for some examples: of one query, or the mean of several.

        Args:
            x: Inputs, as `predict` takes them.
            labels: Classes known to the client's conditional layers, as `predict` takes them.
            mode: `"mc:K"`, the mean of K queries with fresh draws; `"noise-free"`; or `"mean"`.
            seed: Seed of the draws; torch's random state is restored afterwards. `None` goes on with it.
            batch_size: Number of examples that run through the network at a time.
            device: The model's device; found by default.

        Returns:
            The tensors, in the order of `at`, examples on their first axis.

        Raises:
            TypeError: A module returns something else than tensors of examples.
            ValueError: A module is not called exactly once, or the mode is unknown.
        """
        name, count = parse_mode(mode)
        if name in MOMENTS:
            raise ValueError(f"Client mode={mode!r}: moments are not sent; use 'mc:K', 'noise-free' or 'mean'")
        given = self.read(x, labels)
        target = compute_device(given, self.model, self.guide, device)
        totals: list[Tensor] = []
        with self.knowing(labels), evaluating(self.model, self.guide):
            check_labels_around(self.model, count_examples(given, self.model.in_dims))
            pieces = [to_device(piece, target) for piece, _ in split(self.model, given, None, batch_size)]
            for query in range(count):
                # Each query has a seed of its own, so that fewer queries are the first of many.
                with seeded(None if seed is None else mixed_seed(seed, query), target):
                    parts = [
                        self._tensors(cut, count_examples(piece, self.model.in_dims))
                        for piece, (cut, _) in zip(pieces, self.run(pieces, name), strict=True)
                    ]
                sent = [torch.cat(found) for found in zip(*parts, strict=True)]
                totals = sent if not totals else [a + b for a, b in zip(totals, sent, strict=True)]
        return tuple(total / count if count > 1 else total for total in totals)

    def check(self, x: Inputs, *, labels: Tensor | None = None, device: str | torch.device | None = None) -> None:
        """Raise an error if an input reaches the network's output otherwise than through what is sent.

        Found by experiment: with what was sent for some examples in place, these examples and others, with the same
        random numbers, must give the same output.

        Args:
            x: Examples, at least two of which differ.
            labels: Classes known to the client's conditional layers.
            device: The model's device; found by default.

        Raises:
            ValueError: It does: there is a branch beside the cut, whose tensors would leave the client, too; or the
                examples do not differ.
        """
        given = self.read(x, labels)
        target = compute_device(given, self.model, self.guide, device)
        rows, orders = chosen_rows(count_examples(given, 0) or 1, labels)
        few = on_rows(given, rows, target)
        differ = False
        with self.knowing(labels), evaluating(self.model, self.guide):
            with seeded(0, target):
                ((cut, output),) = self.run([few], "mc")
            self._tensors(cut, len(rows))
            for order in orders:
                others = on_rows(few, order, target)
                with seeded(0, target):
                    ((other_cut, free),) = self.run([others], "mc")
                with seeded(0, target):
                    ((_, bound),) = self.run([others], "mc", given=cut.outputs)
                differ = differ or not alike(output, free) or not alike(cut.outputs, other_cut.outputs)
                if not alike(output, bound):
                    raise ValueError(
                        f"Client at={name_list(self.at)}: the input reaches the output of "
                        f"{type(self.model.net).__name__} beside this cut, by a branch whose tensors leave the client, "
                        f"too; name its last module in at= as well{see('how-to/audit_a_layer')}"
                    )
        if not differ:
            raise ValueError("Client check: expected examples that differ in what the network makes of them, got none")

    def read(self, x: Inputs, labels: Tensor | None) -> FlatInputs:
        """Inputs as this library hands them on, with the known classes among them.

        Args:
            x: Inputs.
            labels: Classes known to the client's conditional layers.
        """
        given = flat_inputs(x, self.model.target)
        check_finite("inputs x", given)
        if labels is None:
            return given
        return with_labels(given, check_known_classes(labels, None, "Client labels"))

    @property
    def modules(self) -> list[nn.Module]:
        """Model and guide, as far as they are modules."""
        return [part for part in (self.model, self.guide) if isinstance(part, nn.Module)]

    @property
    def device(self) -> torch.device | None:
        """Their device, `None` where they hold no tensor."""
        return device_of(self.model, self.guide)

    def knowing(self, labels: Tensor | None) -> AbstractContextManager[None]:
        """A context in which classes among the inputs reach the client's conditional layers.

        Args:
            labels: The classes; `None` where they are not known.
        """
        return known_labels(self.model, None if labels is None else "known")

    def run(
        self, pieces: Sequence[FlatInputs], mode: str, given: Any = None, done: Callable[[], None] | None = None
    ) -> Iterator[tuple[Cut, Any]]:
        """Passes of several pieces with one draw of the weights, with gradients where they are on.

        Args:
            pieces: Inputs on the model's device.
            mode: `"mc"`, `"noise-free"` or `"mean"`.
            given: What the modules at the cut return, in place of their outputs.
            done: Called when all that is sent has been computed.

        Yields:
            The cut, which has the outputs of its modules, and what the network returns.
        """
        net = self.model.net
        sampler = PosteriorSampler(self.model, self.guide, mode, 1, joint=mode == "mc")
        for chunk in sampler.draw_chunks(pieces[0]):
            for piece in pieces:
                found: list[Any] = []
                handle = net.register_forward_hook(partial(_keep, found))
                try:
                    with Cut(net, self.at, given, done) as cut:
                        for _ in chunk.run(piece, lambda distribution: {}):
                            pass
                finally:
                    handle.remove()
                yield cut, found[-1]

    def _tensors(self, cut: Cut, count: int | None) -> list[Tensor]:
        """The tensors that modules returned, checked to be examples."""
        found: list[Tensor] = []
        for name, output in cut.outputs.items():
            for leaf in leaves_of(output):
                if leaf is None:
                    continue
                if not isinstance(leaf, Tensor) or leaf.dim() == 0 or (count is not None and len(leaf) != count):
                    got = f"a tensor of shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
                    raise TypeError(
                        f"Client at={name!r}: expected tensors with {count or 'all'} examples on their first axis, got "
                        f"{got}; cut elsewhere{see('how-to/audit_a_layer')}"
                    )
                found.append(leaf.detach())
        return found


def _keep(found: list[Any], module: nn.Module, args: Any, output: Any) -> None:
    found.append(output)


def rolled(x: FlatInputs, in_dims: Any) -> FlatInputs:
    """The same examples, each at the place of another one.

    Args:
        x: Inputs.
        in_dims: The axis of each that counts the examples.
    """
    count = count_examples(x, in_dims) or 1
    return take_examples(x, torch.arange(count).roll(1), in_dims)


def alike(one: Any, other: Any) -> bool:
    """Whether nested tensors are equal.

    Args:
        one: Tensors.
        other: Tensors of the same form.

    Raises:
        TypeError: They hold something else, whose values cannot be compared.
    """
    for a, b in zip(leaves_of(one), leaves_of(other), strict=True):
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if a.shape != b.shape or not torch.equal(a, b):
                return False
        elif a is not None and not isinstance(a, (bool, int, float, str)):
            raise TypeError(
                f"Client: a {type(a).__name__} among what is sent or returned cannot be compared; return tensors, in "
                f"tuples, lists, dictionaries or dataclasses{see('how-to/audit_a_layer')}"
            )
        elif a != b:
            return False
    return True


def chosen_rows(count: int, labels: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """Some examples from all over the data, those of all classes among them, and several other orders of them.

    Args:
        count: Number of examples.
        labels: Their classes, if they are known.

    Returns:
        Their indices, and the orders in which they are tried in place of each other.
    """
    generator = torch.Generator().manual_seed(count)
    order = torch.randperm(count, generator=generator)
    if labels is not None and labels.dim() == 1:  # one of each class first
        _, first = torch.unique(labels.cpu()[order], return_inverse=True)
        seen = torch.stack([(first == c).nonzero()[0, 0] for c in range(int(first.max()) + 1)])
        rest = torch.ones(count, dtype=torch.bool)
        rest[seen] = False
        order = torch.cat([order[seen], order[rest]])
    rows = order[: max(_TRIED, 1)]
    return rows, [torch.arange(len(rows)).roll(step) for step in (1, 5, 11)]


def on_rows(x: FlatInputs, rows: Tensor, device: torch.device | None) -> FlatInputs:
    """Some examples, on a device.

    Args:
        x: Inputs whose first axis counts the examples.
        rows: Their indices.
        device: The device; `None` leaves them where they are.
    """
    taken = take_examples(x, rows, 0)
    return taken if device is None else to_device(taken, device)
