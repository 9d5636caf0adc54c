"""Bayesian networks as estimators of scikit-learn: in pipelines, in cross-validation, on data frames.

scikit-learn is an optional extra, `pip install pyrostoch[sklearn]`; importing pyrostoch does not import it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from pyrostoch import guides, priors
from pyrostoch._checks import check_choice
from pyrostoch._manual import see
from pyrostoch.data.standard import standard_scale
from pyrostoch.likelihoods import Categorical, Gaussian, Likelihood
from pyrostoch.model import BayesianModel
from pyrostoch.models import MLP
from pyrostoch.prediction.output_draws import Draws, draws
from pyrostoch.priors import PriorSpec
from pyrostoch.training.fit import fit

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets, unique_labels
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        f"pyrostoch.sklearn needs scikit-learn 1.6 or newer, which was not found ({error}): "
        "pip install pyrostoch[sklearn]"
    ) from error

__all__ = ["BayesianClassifier", "BayesianRegressor"]

# Initial standard deviation of the noise, in units of the standardized target.
_INITIAL_NOISE = 0.3
_DTYPES = ("float32", "float64")
# A network is trained for about this many steps, and for at least this many epochs.
_STEPS, _LEAST_EPOCHS = 2000, 20


class _BayesianEstimator(BaseEstimator):
    """What both estimators do: standardize the inputs, train a network, and draw from its posterior."""

    def __init__(
        self,
        hidden: Sequence[int] = (50,),
        *,
        net: Callable[[int, int], nn.Module] | None = None,
        prior: PriorSpec = None,
        guide: Callable[[BayesianModel], nn.Module] | None = None,
        epochs: int | None = None,
        batch_size: int = 100,
        lr: float = 1e-2,
        num_samples: int = 50,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
        dtype: str = "float64",
    ) -> None:
        self.hidden = hidden
        self.net = net
        self.prior = prior
        self.guide = guide
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.num_samples = num_samples
        self.random_state = random_state
        self.device = device
        self.dtype = dtype

    def _train(self, x: NDArray[Any], y: NDArray[Any], outputs: int, likelihood: Likelihood) -> Self:
        """Train a new network on inputs and targets that have been checked."""
        check_choice("dtype", self.dtype, _DTYPES)
        dtype = getattr(torch, self.dtype)
        if not isinstance(self.hidden, Sequence):
            raise ValueError(f"hidden: expected widths, such as (50,), got {self.hidden!r}")
        self.mean_, self.scale_ = standard_scale(x, f"{type(self).__name__} X")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            make = self.net or (lambda inputs, outputs: MLP(inputs, tuple(self.hidden), outputs))
            net = make(x.shape[1], outputs)
            model = BayesianModel(
                net.to(dtype),
                prior=priors.Normal() if self.prior is None else self.prior,
                likelihood=likelihood.to(dtype),
                num_data=len(x),
            )
            guide = guides.Additive(model, init_scale=0.05) if self.guide is None else self.guide(model)
        self.model_, self.guide_, self.seed_ = model, guide.to(dtype), seed
        targets = torch.tensor(y, dtype=dtype if y.dtype.kind == "f" else torch.int64)
        default = max(_LEAST_EPOCHS, round(_STEPS / -(-len(x) // self.batch_size)))
        fitted = fit(
            model,
            self.guide_,
            (self._inputs(x), targets),
            epochs=default if self.epochs is None else self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            seed=seed,
            device=self.device,
            progress=False,
            compile=False,
        )
        self.history_ = fitted.history
        return self

    def _inputs(self, x: NDArray[Any]) -> Tensor:
        return torch.tensor((x - self.mean_) / self.scale_, dtype=getattr(torch, self.dtype))

    def _draws(self, x: ArrayLike) -> Draws:
        """Outputs under the same draws of the weights for all examples, so that none depends on the others."""
        check_is_fitted(self)
        checked = validate_data(self, x, reset=False, dtype=[np.float64, np.float32])
        return draws(
            self.model_, self.guide_, self._inputs(checked), self.num_samples, seed=self.seed_, device=self.device
        )


class BayesianClassifier(ClassifierMixin, _BayesianEstimator):
    """A Bayesian network that classifies, as an estimator of scikit-learn.

    Inputs are standardized. Probabilities are averages over draws of the weights, which are the same at every call.

    Args:
        hidden: Widths of the hidden layers of a multilayer perceptron.
        net: In its place, a function from the numbers of inputs and outputs to a network.
        prior: Prior of the weights, as for `BayesianModel`; N(0, 1) by default.
        guide: A function from the model to its guide; `guides.Additive` by default.
        epochs: Passes through the data; by default as many as make 2,000 steps, and at least 20.
        batch_size: Examples in a step.
        lr: Learning rate at the start, falling to 0.
        num_samples: Draws that are averaged.
        random_state: Seed of the initial network, the order of the data and all draws.
        device: Where the network is trained and runs.
        dtype: `"float64"` or `"float32"`.

    Attributes:
        classes_: The classes.
        model_: The `BayesianModel`, for the other verbs of this library.
        guide_: Its guide.
        history_: What `fit` recorded, by epoch.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x, y = load_iris(return_X_y=True)
        >>> estimator = BayesianClassifier((20,), epochs=60, random_state=0).fit(x, y)
        >>> estimator.predict_proba(x).shape, estimator.score(x, y) > 0.9
        ((150, 3), True)
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train a new network.

        Args:
            X: Inputs, (n, features): an array or a data frame of numbers.
            y: Classes, (n,).

        Raises:
            ValueError: There are fewer than two classes, or inputs are not finite.
        """
        x, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_ = unique_labels(y)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__}: expected at least two classes, got one class, {self.classes_[0]!r}"
                f"{see('how-to/scikit_learn')}"
            )
        return self._train(x, np.searchsorted(self.classes_, y), len(self.classes_), Categorical())

    def predict_proba(self, X: ArrayLike) -> NDArray[Any]:
        """Probabilities of the classes, (n, classes).

        Args:
            X: Inputs.
        """
        found: NDArray[Any] = self._draws(X).probs.mean(0).cpu().numpy()
        return found

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable class of each example, (n,).

        Args:
            X: Inputs.
        """
        probs = self.predict_proba(X)  # which says whether it is fitted
        found: NDArray[Any] = self.classes_[probs.argmax(1)]
        return found


class BayesianRegressor(RegressorMixin, MultiOutputMixin, _BayesianEstimator):
    """A Bayesian network for numbers, as an estimator of scikit-learn.

    Inputs and targets are standardized; the noise of each target is fitted. Predictions are in the target's own units,
    averages over draws of the weights that are the same at every call.

    Args:
        hidden: Widths of the hidden layers of a multilayer perceptron.
        net: In its place, a function from the numbers of inputs and outputs to a network.
        prior: Prior of the weights, as for `BayesianModel`; N(0, 1) by default.
        guide: A function from the model to its guide; `guides.Additive` by default.
        epochs: Passes through the data; by default as many as make 2,000 steps, and at least 20.
        batch_size: Examples in a step.
        lr: Learning rate at the start, falling to 0.
        num_samples: Draws that are averaged.
        random_state: Seed of the initial network, the order of the data and all draws.
        device: Where the network is trained and runs.
        dtype: `"float64"` or `"float32"`.

    Attributes:
        model_: The `BayesianModel`, for the other verbs of this library; its targets are standardized.
        guide_: Its guide.
        history_: What `fit` recorded, by epoch.

    Example:
        >>> x = np.linspace(-2, 2, 80)[:, None]
        >>> estimator = BayesianRegressor((20,), epochs=150, random_state=0).fit(x, np.sin(x[:, 0]))
        >>> mean, std = estimator.predict(x, return_std=True)
        >>> mean.shape, std.shape, estimator.score(x, np.sin(x[:, 0])) > 0.9
        ((80,), (80,), True)
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train a new network.

        Args:
            X: Inputs, (n, features): an array or a data frame of numbers.
            y: Targets, (n,) or (n, outputs).

        Raises:
            ValueError: Inputs or targets are not finite.
        """
        x, y = validate_data(self, X, y, dtype=[np.float64, np.float32], multi_output=True, y_numeric=True)
        y = np.asarray(y, dtype=np.float64)
        self._is_flat = y.ndim == 1
        targets = y.reshape(len(y), -1)
        self.target_mean_, self.target_scale_ = standard_scale(targets, f"{type(self).__name__} y")
        noise = Gaussian(torch.full((targets.shape[1],), _INITIAL_NOISE), learn=True)
        return self._train(x, (targets - self.target_mean_) / self.target_scale_, targets.shape[1], noise)

    def predict(self, X: ArrayLike, return_std: bool = False) -> Any:
        """The predictive mean, (n,) or (n, outputs), and on demand its standard deviation.

        Args:
            X: Inputs.
            return_std: Whether to return the standard deviation, too: of the noise and of the means over draws.
        """
        found = self._draws(X)
        means = found.means
        mean = self._units(means.mean(0), self.target_mean_)
        if not return_std:
            return mean
        noise = torch.stack([found.distribution(draw).variance for draw in range(len(found))]).mean(0)
        return mean, self._units((noise + means.var(0, correction=0)).sqrt(), 0.0)

    def _units(self, values: Tensor, shift: Any) -> NDArray[Any]:
        found: NDArray[Any] = values.cpu().numpy() * self.target_scale_ + shift
        return found[:, 0] if self._is_flat else found
