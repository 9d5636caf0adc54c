r"""A selection at another place of a network than its conditional layer.

Between the two there is a copy of every example for every class: with the selection at a module before the layer, class
c reads what that module gives times $\pi_c$, through everything between; with it at a module behind the layer, the
draws of every class run on, and what they become there is added up, each times $\pi_c$.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch._seeds import forked
from pyrostoch.layers.conditional.conditional import Conditional
from pyrostoch.layers.conditional.hard import HardSelection, check_selection, known_selection

__all__ = ["SelectedAt"]


class SelectedAt(nn.Module):
    r"""A network whose conditional layer is selected at another of its modules.

    Where classes are known by labels, each example runs through the layer of its class, and no copies are made.

    Args:
        network: The network. Examples must not meet between the two places, but for batch normalization in evaluation.
        layer: Name of its conditional layer.
        at: Name of the module whose output is multiplied by the selection; it comes before or after the layer.
        selection: `SoftSelection`, of the shape of that output, `GatedSelection`, or another module that maps the
            network's input to (batch, classes, ...).
        example: An input of the network, on which shapes are checked.

    Raises:
        ValueError: There is no such module or layer, it is not called exactly once, or shapes do not fit.

    Example:
        >>> from pyrostoch.layers import GatedSelection, StochasticLinear
        >>> net = nn.Sequential(Conditional(lambda: StochasticLinear(3, 4), 5), nn.Tanh(), nn.Linear(4, 2))
        >>> x = torch.randn(6, 3)
        >>> SelectedAt(net, layer="0", at="1", selection=GatedSelection(nn.Linear(3, 5)), example=x)(x).shape
        torch.Size([6, 2])
    """

    def __init__(self, network: nn.Module, *, layer: str, at: str, selection: nn.Module, example: Tensor) -> None:
        super().__init__()
        modules = dict(network.named_modules())
        for name in (layer, at):
            if not name or name not in modules:
                raise ValueError(
                    f"SelectedAt: {type(network).__name__} has no module {name!r}; it has "
                    f"{name_list([known for known in modules if known])}"
                )
        chosen = modules[layer]
        if not isinstance(chosen, Conditional) or layer == at:
            raise ValueError(
                f"SelectedAt: expected a Conditional layer, and another module at=, got layer={layer!r}, a "
                f"{type(chosen).__name__}, and at={at!r}; a selection of the layer's own input or output is its "
                f"selection={see('how-to/conditional_layers')}"
            )
        if chosen.background not in (None, "class"):
            raise ValueError(
                f"SelectedAt: expected a Conditional layer with background=None or 'class', got {chosen.background!r}, "
                f"which only a selection of its own input or output knows{see('how-to/conditional_layers')}"
            )
        self.network, self.selection, self.layer, self.at = network, selection, layer, at
        modes = [(part, part.training) for part in self.modules()]
        try:
            self.eval()
            with torch.no_grad(), forked(example.device):
                self(example)
        except RuntimeError as error:  # of torch, such as two branches of which one has a copy for each class
            raise ValueError(
                f"SelectedAt: between {at!r} and {layer!r}, {type(network).__name__} does not run on a copy of each "
                f"example for every class: {str(error).splitlines()[0]}; no branch may lead around them"
                f"{see('how-to/conditional_layers')}"
            ) from error
        finally:
            for part, training in modes:
                part.training = training

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Call the network.

        Args:
            x: Its first input, which the selection reads, too.
            *args: Its further inputs.
            **kwargs: The same by name.

        Raises:
            ValueError: A module is not called exactly once, or shapes do not fit.
        """
        known = known_selection()
        if known is not None and known.labels is not None:
            return self.network(x, *args, **kwargs)
        selection = self.selection(x) if known is None else torch.as_tensor(known.tensor).to(x.device, x.dtype)
        pass_ = _Pass(self, torch.as_tensor(selection))
        conditional, place = self.network.get_submodule(self.layer), self.network.get_submodule(self.at)
        handles = [
            conditional.register_forward_pre_hook(pass_.enter_layer, with_kwargs=True),
            conditional.register_forward_hook(pass_.leave_layer),
            place.register_forward_hook(pass_.leave_place),
        ]
        try:
            found = self.network(x, *args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        pass_.check()
        return found

    def extra_repr(self) -> str:
        """The two places."""
        return f"layer={self.layer!r}, at={self.at!r}"


class _Pass:
    """The hooks of one pass."""

    def __init__(self, owner: SelectedAt, selection: Tensor) -> None:
        self.owner, self.selection = owner, selection
        self.layer: Any = owner.network.get_submodule(owner.layer)
        self.order: list[str] = []
        layer: Any = self.layer
        classes = len(layer.classes)
        if selection.dim() < 2 or selection.shape[1] != classes:
            check_selection(selection, (selection.shape[0], classes, *selection.shape[2:]), "SelectedAt selection")
        self.batch, self.classes = selection.shape[0], classes
        #: Whether a class is selected anywhere in an example.
        self.somewhere = (selection != 0).flatten(2).any(-1) if selection.dim() > 2 else selection != 0

    def enter_layer(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Every example with every class: the copies that are there, or new ones."""
        self.order.append("layer")
        x = args[0]
        if self.order[0] == "place":
            copies = x
        else:
            self._refuse_batch_statistics()
            copies = x[:, None].expand(x.shape[0], self.classes, *x.shape[1:]).flatten(0, 1)
        labels = torch.arange(self.classes, device=x.device).repeat(self.batch)
        chosen = HardSelection(labels)
        if self.order[0] == "place":
            chosen.absent = self.somewhere.flatten().logical_not()
        return (copies, *args[1:]), {**kwargs, "selection": chosen}

    def leave_layer(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """The sum over classes where the selection came before; the copies run on where it is still to come."""
        if self.order[0] != "place":
            return None
        by_class = output.unflatten(0, (self.batch, self.classes))
        somewhere = self.somewhere.reshape(*self.somewhere.shape, *(1,) * (by_class.dim() - 2))
        return torch.where(somewhere, by_class, 0.0).sum(1)

    def leave_place(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """A copy for every class times its selection, or the sum of what the draws of every class became."""
        self.order.append("place")
        if self.order[0] == "place":
            self._refuse_batch_statistics()
            return (output[:, None] * self._fitting(output.shape[1:], output)).flatten(0, 1)
        by_class = output.unflatten(0, (self.batch, self.classes))
        return (by_class * self._fitting(by_class.shape[2:], output)).sum(1)

    def _fitting(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        selection = self.selection
        if selection.dim() == 2:
            selection = selection.reshape(*selection.shape, *(1,) * len(shape))
        check_selection(selection, (self.batch, self.classes, *shape), f"SelectedAt selection at {self.owner.at!r}")
        return selection.to(like.dtype)

    def _refuse_batch_statistics(self) -> None:
        if any(isinstance(part, _BatchNorm) and part.training for part in self.owner.network.modules()):
            raise ValueError(
                "SelectedAt: batch normalization in training mode would take its statistics from a copy of every "
                "example for every class; fix its parameters (requires_grad=False), or use another normalization"
                f"{see('how-to/conditional_layers')}"
            )

    def check(self) -> None:
        """Raise an error unless both modules were called exactly once."""
        if sorted(self.order) != ["layer", "place"]:
            raise ValueError(
                f"SelectedAt: expected one call of {self.owner.layer!r} and one of {self.owner.at!r} in a pass, got "
                f"{self.order.count('layer')} and {self.order.count('place')}{see('how-to/conditional_layers')}"
            )
