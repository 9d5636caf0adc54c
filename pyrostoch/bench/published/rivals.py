"""The bench `rivals`: posteriors of every kind at equal training time, beside NUTS and in a gap between data."""

from __future__ import annotations

from functools import partial

from pyrostoch.bench.case import Bench, Case
from pyrostoch.bench.published.rivals_fits import ensemble_trial
from pyrostoch.bench.published.rivals_picture import SETS, draw_methods
from pyrostoch.bench.published.rivals_stages import METHODS
from pyrostoch.bench.published.rivals_trial import method_trial, reference_scores
from pyrostoch.bench.recipe import PosteriorRecipe, Recipe
from pyrostoch.guides import Additive, Delta

__all__ = ["RIVALS"]

_RECIPES = {
    "quick": PosteriorRecipe(epochs=400, lr=4e-2, schedule="cosine", hidden=10),
    "cpu": PosteriorRecipe(epochs=10_000, lr=4e-2, schedule="cosine"),
    "full": PosteriorRecipe(epochs=100_000, lr=4e-2, schedule="cosine"),
}
# Members and networks of the ensembles whose training is timed, and epochs by preset.
_FITS = {"point": ("points", Delta), "additive": ("independent weights", Additive)}
_WIDTHS = {"small": (13, 50, 1), "large": (784, 400, 400, 10)}
_EPOCHS = {"quick": {"small": 5, "large": 2}, "cpu": {"small": 200, "large": 30}, "full": {"small": 1000, "large": 100}}


def _cases() -> tuple[Case, ...]:
    cases = []
    for name, title in SETS.items():
        data = f"uci:{name}"
        cases.append(
            Case(f"{name}/nuts", f"{title}: NUTS", data, _RECIPES, custom_trial=reference_scores, cpu_only=True)
        )
        for method, found in METHODS.items():
            row = f"{title}: {found.title}"
            cases.append(Case(f"{name}/{method}", row, data, _RECIPES, custom_trial=method_trial, cpu_only=True))
    for size, widths in _WIDTHS.items():
        recipes = {preset: Recipe(epochs=epochs[size], batch_size=100) for preset, epochs in _EPOCHS.items()}
        for name, (title, make) in _FITS.items():
            trial = partial(ensemble_trial, widths=widths, make=make)
            text = f"Ensemble of 5 on {'-'.join(map(str, widths))}: {title}"
            cases.append(Case(f"fit/{size}-{name}", text, None, recipes, custom_trial=trial, cpu_only=True))
    return tuple(cases)


RIVALS = Bench(
    name="rivals",
    title="Posteriors at equal training time",
    cases=_cases(),
    columns=(
        ("distance", "Wasserstein distance to NUTS / its sd"),
        ("total_variation", "total variation"),
        ("shift", "difference of means / sd"),
        ("spread", "sd / that of NUTS"),
        ("nll", "NLL, nats"),
        ("rmse", "RMSE"),
        ("gap/nll", "NLL in the gap"),
        ("gap/rmse", "RMSE in the gap"),
        ("gap/spread", "sd in the gap / at the data"),
        ("elbo", "ELBO, nats"),
        ("evidence", "evidence, nats"),
        ("newton_gain", "gain of a Newton step, nats"),
        ("ratio", "time of a step / additive"),
        ("cpu_seconds", "seconds of training"),
        ("finish_seconds", "seconds after it"),
        ("fit/eager", "time of fit / five fits, eager"),
        ("fit/compiled", "compiled"),
        ("fit/compiled steps", "without compiling"),
    ),
    published={},
    notes=(
        "Networks, priors, noise, standard split and references as in the bench `posteriors`; errors and densities are "
        "those of the standardized targets, given the noise. Every method is trained on all data at once, with "
        "compiled steps, in the time of 10,000 steps of the guide with independent weights, whose rate of .04 falls as "
        "a cosine. The ratio of the times of their steps is measured before, in one process, in seconds of the "
        "processor; compiling is not counted. Points, at which Laplace approximations are made, and ensembles of "
        "points have half that rate; what starts from another guide has .6 of the time for that one. SWAG takes SGD "
        "with momentum on an eighth of the data, SGHMC four cycles; both start from a point. Their rates and that of "
        "dropout were chosen by the NLL of held-out training examples of yacht.",
        "The distances are those of the function's marginal distributions at the test inputs, means over them: of "
        "quantiles (Wasserstein), and half the sum of absolute differences of frequencies between 20 quantiles of "
        "NUTS. For 2,000 draws of NUTS's own distribution the latter would be near .06.",
        "In the gap (Foong et al. 2019) the middle third of the examples by one feature is left out of the training "
        "and scored; the seeds take one feature after another, beginning with the one that has the most values. The "
        "noise is that of the standard split. Not run there: NUTS.",
        "The time of a fit of five members is that over five fits of one, one thread, 500 examples in batches of 100.",
        "Evidence: Laplace's log marginal likelihood at the point reached; what a Newton step would still gain tells "
        "how far from a maximum it is. That of a last layer is given its features, which have no prior; no ELBO is "
        "given for it.",
    ),
    source="",
    figure=draw_methods,
)
