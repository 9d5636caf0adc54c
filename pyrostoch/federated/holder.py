"""A data holder: clean examples that stay where they are, and what leaves instead of them."""

from __future__ import annotations

import contextlib
import secrets
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyrostoch._checks import check_choice, check_count, check_finite, check_positive, name_list
from pyrostoch._manual import see
from pyrostoch._seeds import mixed_seed
from pyrostoch.federated.weights import load_weights, weights_of
from pyrostoch.infer.known_labels import conditional_layers
from pyrostoch.layers.embody import Prepended
from pyrostoch.model import BayesianModel
from pyrostoch.obfuscate.bypass import LAYER, bypassed, check_prepended, only_the_layer
from pyrostoch.obfuscate.client import Client
from pyrostoch.obfuscate.manifest import fingerprint
from pyrostoch.obfuscate.progressive_settings import check_fit_settings
from pyrostoch.prediction.noise import activation_noise
from pyrostoch.safefile import only_writer_of, read_file, write_file
from pyrostoch.training.fit import fit
from pyrostoch.training.fixed import fixed, parameters_below
from pyrostoch.training.two_steps import fit_two_steps

__all__ = ["SENDS", "Holder", "Obfuscated"]

SENDS = ("weights", "examples")
_NOISE_EXAMPLES = 1000
# Settings of `fit` that a round decides by itself.
_OWN = frozenset(
    {"epochs", "checkpoint", "resume", "seed", "labels", "steps_per_epoch", "shuffle", "validation", "patience"}
)


@dataclass(frozen=True, eq=False)
class Obfuscated:
    """Examples as a holder sends them.

    Args:
        inputs: The inputs under noise.
        labels: Their labels, in the clear.
        noise: The noise beside the signal that it covers; see `activation_noise`.
    """

    inputs: Tensor
    labels: Tensor
    noise: float


@dataclass(frozen=True, eq=False)
class Holder:
    r"""A data holder, who trains on clean examples and sends weights, or obfuscated examples, but never these.

    A plain network has one step of training, `"clean"`. A network with a conditional layer in front of it
    (`layers.embody.prepend(N, S)`) has those of `obfuscate.progressive` on clean data: `"clean"`, N without S;
    `"classes"`, S in front of the fixed N with known labels; and `"selection"`, where S has a selection for unknown
    ones.

    With `send="examples"` the holder trains N and S alone, on nobody's weights, and obfuscates every example once.
    What was drawn is kept in the file `sent`, and only that file is ever sent: another draw of the noise beside it
    would average out. Labels go with them, and nothing hides them.

    Args:
        name: Its name in reports, such as the number of its part of the data.
        model: The model.
        guide: Its guide.
        data: Its clean examples, `(x, y)`.
        epochs: Number of epochs of every step in a round: `{"clean": 1}`, or `{"clean": 1, "classes": 1, ...}`.
        send: What this holder agrees to send, `"weights"` or `"examples"`.
        settings: Settings of `fit` for all steps.
        steps: Settings of `fit` for single steps, such as `{"classes": {"noise_weight": 0.1}}`.
        labels_in_clear: The holder agrees to send the labels of its examples as they are; `send="examples"` needs it.
        least_noise: With less noise beside the signal than this, as `activation_noise` measures it, nothing is sent;
            `send="examples"` needs it.
        sent: The file of obfuscated examples, which stays with the holder.

    Raises:
        TypeError: Data are no pair of tensors, or examples cannot be obfuscated by this network.
        ValueError: A setting does not fit.

    Example:
        >>> import pyrostoch as ps
        >>> x = torch.randn(20, 2)
        >>> model = BayesianModel(nn.Linear(2, 2), prior=ps.priors.Normal(), num_data=20,
        ...                       likelihood=ps.likelihoods.Categorical())
        >>> holder = Holder("a", model, ps.guides.Additive(model), (x, (x[:, 0] > 0).long()), epochs={"clean": 2},
        ...                 send="weights", settings={"progress": False, "compile": False})
        >>> weights = holder.train(weights_of(holder.model, holder.guide), num_data=100, seed=0)
        >>> sorted(weights) == sorted(weights_of(holder.model, holder.guide)), holder.model.num_data
        (True, 20)
    """

    name: str
    model: BayesianModel
    guide: nn.Module
    data: tuple[Tensor, Tensor]
    epochs: Mapping[str, int]
    send: Literal["weights", "examples"]
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    labels_in_clear: bool = False
    least_noise: float | None = None
    sent: str | Path | None = None

    def __post_init__(self) -> None:
        check_choice("Holder send", self.send, SENDS)
        if not isinstance(self.data, (tuple, list)) or [isinstance(p, Tensor) for p in self.data] != [True] * 2:
            raise TypeError(f"Holder data: expected tensors (x, y), got {type(self.data).__name__}")
        x, y = self.data
        if len(x) != len(y) or not len(x):
            raise ValueError(
                f"Holder data: expected as many labels as inputs, and at least one, got {len(x)} and {len(y)}"
            )
        check_finite("Holder inputs x", x)
        wanted = self._steps()
        if not isinstance(self.epochs, Mapping) or set(self.epochs) != set(wanted):
            got = name_list(self.epochs) if isinstance(self.epochs, Mapping) else repr(self.epochs)
            raise ValueError(
                f"Holder epochs: expected those of {name_list(wanted)}, got {got}{see('how-to/federated')}"
            )
        for step, count in self.epochs.items():
            check_count(f"Holder epochs[{step!r}]", count)
        for step in self.steps:
            check_choice("Holder steps", step, wanted)
        for own, given in ((_OWN, self.settings), *((_OWN | {"batch_size"}, part) for part in self.steps.values())):
            if found := sorted(own & set(given)):
                raise ValueError(f"Holder settings: {name_list(found)} cannot be set here; leave them out")
        check_fit_settings("Holder", self.settings, self.steps)
        check_count("Holder settings batch_size", self.settings.get("batch_size", 100))
        if self.send == "examples":
            self._check_examples()

    @property
    def examples_held(self) -> int:
        """Number of its examples."""
        return len(self.data[0])

    def train(self, weights: Mapping[str, Tensor], *, num_data: int, seed: int) -> dict[str, Tensor]:
        r"""Train on, from the weights of all, on its own clean examples.

        Of the loss, the KL belongs to the data of all holders, and every holder has it with its full weight: with
        $N = \sum_k n_k$, a holder minimizes $L_k = \frac{N}{n_k} \sum_i -\log p(y_i \mid x_i, w) + \mathrm{KL}$, so
        that $\sum_k \frac{n_k}{N} L_k$ is the loss of all data. With its own number of examples instead, every holder
        would count the KL as if there were no others.

        Args:
            weights: The weights to begin with.
            num_data: The number N of examples of all holders.
            seed: Seed of the round.

        Returns:
            The weights after the training.

        Raises:
            ValueError: The holder does not send weights, or these are of another model; or a setting does not fit.
        """
        self._check_sends("weights")
        if check_count("Holder num_data", num_data) < self.examples_held:
            raise ValueError(
                f"Holder num_data: expected the number of examples of all holders, at least the "
                f"{self.examples_held} of this one, got {num_data}{see('how-to/federated')}"
            )
        load_weights(self.model, self.guide, weights)
        self._train(num_data, mixed_seed(seed, zlib.crc32(self.name.encode())))
        return weights_of(self.model, self.guide)

    def obfuscated(self, *, seed: int) -> Obfuscated:
        """Its examples under noise: drawn once, in the first call, and read from the file `sent` in all others.

        Args:
            seed: Seed of the training. The noise has another one, which nobody knows and nothing keeps.

        Returns:
            The examples.

        Raises:
            ValueError: The holder does not send examples, the noise is less than `least_noise`, or the file belongs to
                other examples.
        """
        self._check_sends("examples")
        x, y = self.data
        path, own = Path(str(self.sent)), fingerprint(x, y)
        with only_writer_of(path):
            if path.exists():
                tensors, content = read_file(path)
                if content.get("examples_of") != own:
                    raise ValueError(
                        f"holder {self.name!r}: {path} was drawn from other examples than these; what has been sent "
                        "cannot be taken back, and noise that is drawn again for the same examples averages out. Give "
                        f"another file only for examples that were never sent{see('how-to/federated')}"
                    )
                return Obfuscated(tensors["inputs"], tensors["labels"], content["noise"])
            self._train(len(x), mixed_seed(seed, zlib.crc32(self.name.encode())))
            sent = self._draw()
            write_file(path, {"inputs": sent.inputs, "labels": sent.labels}, {"noise": sent.noise, "examples_of": own})
        return sent

    def _draw(self) -> Obfuscated:
        x, y = self.data
        some = x[:_NOISE_EXAMPLES], y[:_NOISE_EXAMPLES]
        with self._sized(len(some[0])):
            noise = activation_noise(self.model, self.guide, some, labels="known", batch_size=100).rows[0].ratio
        if not noise >= (self.least_noise or 0.0):  # NaN, too
            raise ValueError(
                f"holder {self.name!r}: its noise is {noise:.3g} times the signal, less than least_noise="
                f"{self.least_noise:g}, and nothing was sent; enlarge it by noise_weight in the step 'classes', or "
                f"begin with a larger scale{see('how-to/federated')}"
            )
        client = Client(self.model, self.guide, at="stochastic")
        drawn = client.send(x, labels=y, seed=secrets.randbits(63), batch_size=500, device=client.device)[0].cpu()
        if bool((drawn == x.cpu()).flatten(1).all(1).any()):
            raise ValueError(f"holder {self.name!r}: the layer left an example as it is; nothing was sent")
        return Obfuscated(drawn, y.cpu(), float(noise))

    def _train(self, num_data: int, seed: int) -> None:
        with self._sized(num_data):
            if not self._has_layer():
                self._fit("clean", seed)
                return
            with bypassed(self.model), fixed(parameters_below(self.model, self.guide, LAYER)):
                self._fit("clean", seed)
            with only_the_layer(self.model, self.guide):
                selections = self._selections()
                fit_two_steps(
                    self.model,
                    self.guide,
                    self._loader(mixed_seed(seed, 1)),
                    selection=selections or None,
                    epochs=(self.epochs["classes"], self.epochs.get("selection", 1)),
                    train_network=False,
                    first=self.steps.get("classes", {}),
                    second=self.steps.get("selection", {}),
                    **self._settings(mixed_seed(seed, 1)),
                )

    def _fit(self, step: str, seed: int) -> None:
        own = {**self._settings(seed), **self.steps.get(step, {})}
        fit(self.model, self.guide, self._loader(seed), epochs=self.epochs[step], **own)

    def _settings(self, seed: int) -> dict[str, Any]:
        rest = {name: value for name, value in self.settings.items() if name != "batch_size"}
        return {**rest, "seed": seed, "steps_per_epoch": len(self._loader(seed))}

    def _loader(self, seed: int) -> DataLoader[Any]:
        """Its examples in batches; a last batch of one is left out, which batch normalization could not read."""
        count, size = self.examples_held, min(self.settings.get("batch_size", 100), self.examples_held)
        return DataLoader(
            TensorDataset(*self.data),
            batch_size=size,
            shuffle=True,
            drop_last=count > size and count % size == 1,
            generator=torch.Generator().manual_seed(seed),
        )

    @contextlib.contextmanager
    def _sized(self, count: int) -> Iterator[None]:
        before, self.model.num_data = self.model.num_data, count
        try:
            yield
        finally:
            self.model.num_data = before

    def _steps(self) -> list[str]:
        if not self._has_layer():
            return ["clean"]
        return ["clean", "classes", *(["selection"] if self._selections() else [])]

    def _has_layer(self) -> bool:
        net = self.model.net
        return isinstance(net, Prepended) and bool(conditional_layers(net.stochastic))

    def _selections(self) -> dict[str, nn.Module]:
        found = {name: layer.selection for name, layer in conditional_layers(self.model.net).items()}
        return {name: part for name, part in found.items() if part is not None}

    def _check_sends(self, what: str) -> None:
        if self.send != what:
            raise ValueError(
                f"holder {self.name!r}: asked for {what}, but it agreed to send {self.send} only"
                f"{see('how-to/federated')}"
            )

    def _check_examples(self) -> None:
        net = check_prepended(self.model, "Holder send='examples'")
        if not self._has_layer():
            raise TypeError(
                f"Holder send='examples': expected a layers.Conditional in front of the network, got "
                f"{type(net.stochastic).__name__}{see('how-to/federated')}"
            )
        if not self.labels_in_clear:
            raise ValueError(
                "Holder send='examples': the labels of the examples are sent as they are, and no noise hides them; say "
                f"labels_in_clear=True if their owners agree, or send weights{see('how-to/federated')}"
            )
        if self.sent is None:
            raise ValueError(
                "Holder send='examples': give sent=, a file that keeps the one draw of every example that is ever sent"
                f"{see('how-to/federated')}"
            )
        if self.least_noise is None:
            raise ValueError(
                "Holder send='examples': give least_noise=, the noise beside the signal below which nothing is sent: "
                f"training may shrink the noise{see('how-to/federated')}"
            )
        check_positive("Holder least_noise", self.least_noise)
        x = self.data[0]
        alike = len(x) - len(torch.unique(x.flatten(1), dim=0))
        if alike:
            raise ValueError(
                f"Holder send='examples': {alike} of {len(x)} examples are copies of others; each would get noise of "
                f"its own, which averages out. Leave copies out{see('how-to/federated')}"
            )
