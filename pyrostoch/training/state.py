"""The whole state of a training run, as tensors by name, for rolling back and for checkpoints.

| name | content |
| --- | --- |
| `model.<key>`, `guide.<key>` | their state dictionaries, including buffers |
| `optimizer.<kind>.<parameter>` | the optimizer's state of a parameter, by the parameter's name |
| `rng.cpu`, `rng.cuda`, `rng.loader.<i>` | states of torch's random generators |
| `rng.python`, `rng.numpy` | states of the global generators of Python and NumPy, where the data have drawn from them |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyrostoch.safefile import check_layouts
from pyrostoch.training.left_out import left_out
from pyrostoch.training.optimizer import optimizer_tensors, restore_optimizer
from pyrostoch.training.other_generators import numpy_state, python_state, set_numpy_state, set_python_state

__all__ = ["TrainingState", "form", "module_state", "overwrite", "parameter_names"]

_OTHER_GENERATORS: dict[str, tuple[Callable[[], Tensor], Callable[[Tensor], None]]] = {
    "rng.python": (python_state, set_python_state),
    "rng.numpy": (numpy_state, set_numpy_state),
}


def module_state(model: nn.Module, guide: nn.Module) -> dict[str, Tensor]:
    """The state of model and guide, but for what `leave_out_fixed` leaves out: the tensors themselves, not copies.

    Args:
        model: The model.
        guide: The guide.

    Returns:
        Tensors by name, `model.<key>` and `guide.<key>`.

    Raises:
        TypeError: A module has an entry in its state dictionary that is not a tensor.

    Example:
        >>> list(module_state(nn.Linear(1, 1), nn.Linear(1, 1, bias=False)))
        ['model.weight', 'model.bias', 'guide.weight']
    """
    state = {}
    left = {id(parameter) for parameter in left_out(model).values()}
    for prefix, module in (("model", model), ("guide", guide)):
        registered = (held for part in module.modules() for held in (part._parameters, part._buffers))
        own = {id(tensor) for held in registered for tensor in held.values()}
        # Not detached: of a sparse tensor, that would be another object, whose entries can be replaced without its own.
        for key, value in module.state_dict(keep_vars=True).items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{prefix}: the state {key!r} is a {type(value).__name__}; only tensors can be saved so "
                    "that loading them runs no code. Register it as a buffer, or leave it out of the state_dict"
                )
            if id(value) not in own:
                raise TypeError(
                    f"{prefix}: the state {key!r} is made anew by state_dict (extra state, a hook), so that writing "
                    "into it restores nothing. Register it as a buffer, or leave it out of the state_dict"
                )
            if id(value) not in left:
                state[f"{prefix}.{key}"] = value
    return state


def form(value: Tensor) -> str:
    """Shape and layout of a tensor, as text; of a compressed sparse one also its entries, whose number cannot change.

    Args:
        value: The tensor.

    Example:
        >>> form(torch.zeros(2)), form(torch.eye(2).to_sparse())
        ('shape (2,), strided', 'shape (2, 2), sparse_coo')
    """
    text = f"shape {tuple(value.shape)}, {value.layout}".replace("torch.", "")
    compressed = value.layout not in (torch.strided, torch.sparse_coo)
    return text + (f" with values of shape {tuple(value.values().shape)}" if compressed else "")


def overwrite(targets: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Overwrite tensors in place, all of them or none; they keep their devices and dtypes.

    Args:
        targets: The tensors, which are changed.
        state: New values, with the same names, forms (see `form`) and kinds of dtypes.

    Raises:
        TypeError: A form is another one; nothing was changed.

    Example:
        >>> weight = torch.zeros(2)
        >>> overwrite({"weight": weight}, {"weight": torch.ones(2, dtype=torch.float64)})
        >>> weight
        tensor([1., 1.])
    """
    for name, target in targets.items():
        if form(target) != form(state[name]):
            raise TypeError(f"{name}: expected {form(state[name])}, got {form(target)}; keep the tensor's form")
    # Converted before the first is replaced, since a device may be out of memory.
    values = {name: state[name].to(target.device, target.dtype) for name, target in targets.items()}
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(values[name])


def _restore_buffers(modules: dict[str, nn.Module], state: dict[str, Tensor]) -> None:
    """Remove buffers that a state has not, and replace those of another size, so that the rest can be overwritten."""
    for prefix, module in modules.items():
        for name, part in module.named_modules():
            for key, buffer in list(part._buffers.items()):
                full = ".".join(word for word in (prefix, name, key) if word)
                if key in part._non_persistent_buffers_set or buffer is None:
                    continue
                if full not in state:
                    part._buffers[key] = None
                elif form(buffer) != form(state[full]):
                    part._buffers[key] = state[full].detach().clone().to(buffer.device, buffer.dtype)


def parameter_names(model: nn.Module, guide: nn.Module) -> dict[nn.Parameter, str]:
    """A name for each trainable parameter of model and guide; a shared parameter has one name.

    Args:
        model: The model.
        guide: The guide.
    """
    names: dict[nn.Parameter, str] = {}
    for prefix, module in (("guide", guide), ("model", model)):
        for key, parameter in module.named_parameters():
            if parameter.requires_grad:
                names.setdefault(parameter, f"{prefix}.{key}")
    return names


class TrainingState:
    """Captures and restores the whole state of a training run.

    Args:
        model: The model.
        guide: The guide.
        optimizer: The optimizer of both.
        names: Name of each trained parameter.
        device: The device of model and guide.
        generators: Random generators of the data, besides torch's global ones.

    Raises:
        TypeError: Model or guide have a tensor that cannot be copied and put back; it is named.
    """

    def __init__(
        self,
        model: nn.Module,
        guide: nn.Module,
        optimizer: torch.optim.Optimizer,
        names: dict[nn.Parameter, str],
        device: torch.device,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        self.model, self.guide, self.optimizer = model, guide, optimizer
        self.names, self.device, self.generators = names, device, generators
        check_layouts(module_state(model, guide))
        # Those of Python and NumPy are a part of the run only where its data draw from them.
        self._first = {name: state_of() for name, (state_of, _) in _OTHER_GENERATORS.items()}
        self._used = dict.fromkeys(_OTHER_GENERATORS, False)

    def capture(self) -> dict[str, Tensor]:
        """Copies of the whole state, on the devices of the originals."""
        state = {name: value.detach().clone() for name, value in module_state(self.model, self.guide).items()}
        kept = optimizer_tensors(self.optimizer, self.names)
        state |= {name: value.detach().clone() for name, value in kept.items()}
        state["rng.cpu"] = torch.get_rng_state()
        for name, (state_of, _) in _OTHER_GENERATORS.items():
            now = state_of()
            if self._used[name] or not torch.equal(now, self._first[name]):
                self._used[name], state[name] = True, now
        if self.device.type == "cuda":
            state["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        for index, generator in enumerate(self.generators):
            state[f"rng.loader.{index}"] = generator.get_state()
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore a state from `capture`, whose tensors are copied.

        Args:
            state: The state.
        """
        self.restore_modules(state)
        restore_optimizer(self.optimizer, self.names, state)
        torch.set_rng_state(state["rng.cpu"])
        for name, (_, set_state) in _OTHER_GENERATORS.items():
            if name in state or self._used[name]:
                set_state(state.get(name, self._first[name]))
                self._used[name] = name in state
        if self.device.type == "cuda" and "rng.cuda" in state:
            torch.cuda.set_rng_state(state["rng.cuda"], self.device)
        for index, generator in enumerate(self.generators):
            if f"rng.loader.{index}" in state:
                generator.set_state(state[f"rng.loader.{index}"])

    def restore_modules(self, state: dict[str, Tensor]) -> None:
        """Restore model and guide only; they keep their devices and dtypes.

        Args:
            state: The state.
        """
        _restore_buffers({"model": self.model, "guide": self.guide}, state)
        overwrite(module_state(self.model, self.guide), state)
