"""The bench `posteriors`: small networks on real sets, each guide beside a long run of NUTS at equal time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pyrostoch import guides, priors
from pyrostoch.bench.case import Bench, Case, TrialContext
from pyrostoch.bench.nuts import Reference, sample_reference, write_reference
from pyrostoch.bench.published.posterior_steps import steps_trial
from pyrostoch.bench.published.posterior_trial import NOISE, guide_trial, recipe_of, reference_file, rmse
from pyrostoch.bench.recipe import PosteriorRecipe, Recipe

__all__ = ["POSTERIORS"]

#: Guides by name: title, and what makes them from a model.
GUIDES: dict[str, tuple[str, Any]] = {
    "additive": ("independent weights", guides.Additive),
    "low-rank": ("rank 5, all weights together", guides.LowRank),
    "low-rank-20": ("rank 20, all weights together", partial(guides.LowRank, rank=20)),
    "matrix": ("covariance of rows and of columns", guides.MatrixNormal),
    "full": ("full covariance of each weight and bias", guides.FullCovariance),
}
# Guides whose step is timed, with the prior that they want.
_TIMED: dict[str, tuple[str, Any, Any]] = {
    "low-rank": ("rank 5, all weights together", guides.LowRank, priors.Normal),
    "low-rank-site": ("rank 5, by site", partial(guides.LowRank, scope="site"), priors.Normal),
    "matrix": ("covariance of rows and of columns", guides.MatrixNormal, priors.Normal),
    "rank-one": ("factors of rank one", guides.RankOne, priors.RankOne),
}
_STEPS = {
    "quick": Recipe(epochs=3, batch_size=100),
    "cpu": Recipe(epochs=15, batch_size=100),
    "full": Recipe(epochs=50, batch_size=100),
}
_TITLES = {"yacht": "Yacht", "energy": "Energy", "bostonHousing": "Boston"}
_RECIPES = {
    "quick": PosteriorRecipe(epochs=200, lr=1e-2, schedule="cosine", hidden=10, warmup=50, draws=50, chains=2),
    "cpu": PosteriorRecipe(epochs=30_000, lr=4e-2, schedule="cosine"),
    "full": PosteriorRecipe(epochs=100_000, lr=4e-2, schedule="cosine", warmup=2000, draws=5000),
}

# Chains that take longer until they agree.
_LONGER: dict[str, dict[str, dict[str, Any]]] = {"energy": {"cpu": {"warmup": 2000, "draws": 6000}}}


def _reference(context: TrialContext) -> Mapping[str, float]:
    """The reference of a set, one run; its draws are kept beside the records."""
    recipe, split = recipe_of(context), context.require_split()
    found: Reference = sample_reference(
        split.x_train,
        split.y_train[:, 0],
        split.x_test,
        noise=NOISE[context.case.name.partition("/")[0]],
        hidden=recipe.hidden,
        warmup=recipe.warmup,
        draws=recipe.draws,
        chains=recipe.chains,
        seed=context.seed,
    )
    write_reference(reference_file(context), found)
    return {
        "r_hat": found.r_hat,
        "ess": found.ess,
        "gradients": found.steps,
        "divergences": found.divergences,
        "rmse": rmse(found.functions.mean(0), split),
    }


def _cases() -> tuple[Case, ...]:
    cases = []
    for name, title in _TITLES.items():
        data = f"uci:{name}"
        longer = _LONGER.get(name, {})
        recipes = {preset: replace(recipe, **longer.get(preset, {})) for preset, recipe in _RECIPES.items()}
        cases.append(Case(f"{name}/nuts", f"{title}: NUTS", data, recipes, custom_trial=_reference, cpu_only=True))
        for guide, (text, make) in GUIDES.items():
            trial = partial(guide_trial, make=make)
            case = Case(f"{name}/{guide}", f"{title}: {text}", data, _RECIPES, custom_trial=trial, cpu_only=True)
            cases.append(case)
    for name, (text, make, prior) in _TIMED.items():
        trial = partial(steps_trial, make=make, prior=prior)
        title = f"A step of 784-400-400-10: {text}"
        cases.append(Case(f"steps/{name}", title, None, _STEPS, custom_trial=trial, cpu_only=True))
    return tuple(cases)


POSTERIORS = Bench(
    name="posteriors",
    title="Posteriors beside NUTS",
    cases=_cases(),
    columns=(
        ("elbo", "ELBO, nats"),
        ("elbo/error", "standard error"),
        ("kl", "KL, nats"),
        ("distance", "Wasserstein distance to NUTS / its sd"),
        ("shift", "difference of means / sd"),
        ("spread", "sd / that of NUTS"),
        ("rmse", "RMSE"),
        ("steps", "steps"),
        ("ratio", "time of a step / additive"),
        ("step/eager", "time of an eager step / additive"),
        ("step/compiled", "of a compiled one"),
        ("r_hat", "largest R-hat"),
        ("ess", "least effective sample size"),
        ("divergences", "divergences"),
    ),
    published={},
    notes=(
        "One hidden layer of 50 tanh units on standardized data, the first of the standard splits. Weights are "
        "N(0, 1/inputs), biases N(0, 1); the noise has the standard deviation .05 (yacht, energy) and .3 (Boston), in "
        "units of the target's, near the published errors of such networks. All guides are trained on all data at "
        "once, with compiled steps, for as long as 30,000 steps of the additive guide take, by a rate of .04 that "
        "falls as a cosine. The others are the additive guide for .6 of that time; for the rest they go on from its "
        "means and standard deviations, by a tenth of the rate. The ratio of the times of their steps is measured "
        "before, in turns, in the same process. The rate was chosen by the ELBO of the additive guide on yacht.",
        "The reference is NumPyro's NUTS: 4 chains of 1,000 draws after 1,000 that adapt it (energy: 6,000 after "
        "2,000), started at other places. "
        "R-hat and effective sample size are those of the function at the test inputs. The distance is that between "
        "the marginal distributions of the function at a test input, from 2,000 draws, over the standard deviation of "
        "the reference, a mean over test inputs.",
        "The time of a step is that under a normal prior (factors of rank one: under their own) with 100 examples, "
        "over the additive guide's, a median of blocks of 3 steps in turns.",
    ),
    source="",
)
