"""Entries that torch holds constant (padding rows, pruned weights) are not drawn, cost nothing, are not trained."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from torch import nn
from torch.nn.utils import prune as torch_prune

import pyrostoch as ps
from pyrostoch import guides, layers, priors

WORDS, PAD = 6, 2


class Bag(nn.Module):
    """Sums the embeddings of a sentence, so that padding must add nothing."""

    def __init__(self, table=None):
        super().__init__()
        self.table = nn.Embedding(WORDS, 3, padding_idx=PAD) if table is None else table
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.table(x).sum(1))


def bayes(net, prior, likelihood=ps.likelihoods.Categorical):
    return ps.BayesianModel(net, prior=prior, likelihood=likelihood(), num_data=20)


def sentences():
    x = torch.randint(0, WORDS, (20, 5))
    x[::3, 3:] = PAD
    return x, (x == 4).any(1).long()


GUIDES = {
    "additive": (guides.Additive, priors.Normal),
    "additive, log-uniform": (guides.Additive, priors.LogUniform),
    "additive, sampled KL": (guides.Additive, partial(priors.StudentT, 4.0)),
    "weight-wise": (guides.WeightwiseAlpha, priors.LogUniform),
    "neuron-wise": (guides.NeuronwiseAlpha, priors.Normal),
    "layer-wise": (guides.LayerwiseAlpha, priors.ARD),
    "variance only": (guides.VarianceOnly, priors.Normal),
    "categorical": (guides.CategoricalWeights, priors.Grid),
    "binomial": (guides.BinomialWeights, priors.SymmetricBinomial),
    "random scale": (guides.Additive, priors.Hierarchical),
}


@pytest.mark.parametrize("name", GUIDES)
def test_the_padding_row_is_a_constant_in_every_guide(name):
    make, prior = GUIDES[name]
    net = Bag()
    if name == "variance only":  # whose weights cannot compute logits
        net.head.weight.requires_grad_(False)
    with torch.no_grad():
        net.table.weight[PAD] = torch.tensor([0.5, 0.0, -2.0])  # a constant of the user's
    model = bayes(net, prior())
    guide = make(model)
    before = {key: value.clone() for key, value in guide.named_parameters()}
    x, y = sentences()
    ps.fit(model, guide, (x, y), epochs=3, batch_size=10, lr=0.1, progress=False, compile=False)
    distribution = guide.site_distribution("table.weight").base_dist
    for value in (distribution.sample(), distribution.mean, guide()["table.weight"]):
        assert torch.equal(value[PAD], net.table.weight[PAD])
    assert (distribution.variance[PAD] == 0).all() and (distribution.variance[0] > 0).all()
    for key, parameter in guide.parameters_for("table.weight").items():
        assert bool(torch.isfinite(parameter).all())
        if parameter.shape == net.table.weight.shape:
            old = before[f"parameters_of.table/weight.{key}"]
            assert torch.equal(parameter[PAD], old[PAD]) and not torch.equal(parameter, old)


@pytest.mark.parametrize("name", [name for name in GUIDES if name not in ("additive, sampled KL", "random scale")])
def test_the_kl_is_that_of_the_other_rows(name):
    make, prior = GUIDES[name]
    model = bayes(Bag(), {"table.weight": prior()})
    guide = make(model)
    shorter = bayes(Bag(nn.Embedding(WORDS - 1, 3)), {"table.weight": prior()})
    rows = [row for row in range(WORDS) if row != PAD]
    twin = make(shorter)
    with torch.no_grad():
        for key, value in twin.parameters_for("table.weight").items():
            whole = guide.parameters_for("table.weight")[key]
            axis = next((i for i, size in enumerate(whole.shape) if size == WORDS), None)
            value.copy_(whole if axis is None else whole.index_select(axis, torch.tensor(rows)))
    found, expected = (
        ps.ELBO("shared").terms(m, g, torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, dtype=torch.long)).sites
        for m, g in ((model, guide), (shorter, twin))
    )
    assert found["table.weight"].exact
    torch.testing.assert_close(found["table.weight"].kl, expected["table.weight"].kl)


def test_a_sampled_kl_has_no_term_of_the_padding_row():
    model = bayes(Bag(), {"table.weight": priors.StudentT(4.0)})
    guide = guides.Additive(model)
    distribution = guide.site_distribution("table.weight").base_dist
    x, y = sentences()
    torch.manual_seed(5)
    found = ps.ELBO("shared").terms(model, guide, x, y).sites["table.weight"].kl
    torch.manual_seed(5)
    value = guide()["table.weight"]
    prior = torch.distributions.StudentT(4.0)
    terms = distribution.base_dist.log_prob(value) - prior.log_prob(value)
    torch.testing.assert_close(found, terms[[row for row in range(WORDS) if row != PAD]].sum())


@pytest.mark.parametrize("mode", ["mean", "mc:50", "moments:mc:20"])
def test_a_prediction_does_not_depend_on_the_padding(mode):
    """The kind of fault 04: a padding row that is drawn makes longer sentences less certain."""
    model = bayes(Bag(), priors.Normal())
    guide = guides.Additive(model, init_scale=0.5)
    found = []
    for width in (2, 6, 12):
        x = torch.full((1, width), PAD)
        x[0, :2] = torch.tensor([3, 5])
        torch.manual_seed(0)
        found.append(ps.predict(model, guide, x, mode=mode).probs)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
def test_guides_of_pyro_draw_the_row_and_the_network_never_sees_it(objective):
    model = bayes(Bag(), priors.Normal())
    x, y = sentences()
    guide = AutoNormal(model, init_scale=0.5)
    svi = SVI(model, guide, Adam({"lr": 0.05}), objective())
    for _ in range(300):
        svi.step(x, y)
    # Its distribution becomes that of the stand-in, N(constant, 1): no divergence is left.
    scale = guide.scales.table.weight[PAD]
    assert scale.mean().item() == pytest.approx(1.0, abs=0.35)
    with torch.no_grad():
        torch.manual_seed(1)
        short = model.observation(x[:1, :2]).logits
        torch.manual_seed(1)
        long = model.observation(F.pad(x[:1, :2], (0, 9), value=PAD)).logits
    assert torch.equal(short, long)


def test_nuts_samples_the_other_rows():
    model = bayes(Bag(), priors.Normal())
    x, y = sentences()
    sampler = MCMC(NUTS(model, max_tree_depth=3), num_samples=10, warmup_steps=10, disable_progbar=True)
    sampler.run(x, y)
    draws = sampler.get_samples()["table.weight"]
    assert bool(torch.isfinite(draws).all()) and bool((draws.std(0) > 0).all())


def test_a_weight_that_other_layers_train_has_no_constant_row():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(WORDS, 3, padding_idx=PAD), nn.Linear(3, WORDS, bias=False)
            self.out.weight = self.table.weight

        def forward(self, x):
            return self.out(self.table(x).sum(1))

    guide = guides.Additive(bayes(Tied(), priors.Normal()))
    assert (guide.site_distribution("table.weight").base_dist.stddev > 0).all()


def test_bags_of_embeddings_and_layers_used_alone():
    bag = nn.EmbeddingBag(WORDS, 3, padding_idx=PAD, mode="sum")
    guide = guides.Additive(bayes(nn.Sequential(bag, nn.Linear(3, 2)), priors.Normal()))
    assert (guide()["0.weight"][PAD] == bag.weight[PAD]).all()
    layer = layers.Embedding(WORDS, 3, padding_idx=PAD, prior=priors.Normal(), name="table")
    out = layer(torch.tensor([PAD, 0]))
    assert (out[0] == 0).all() and (out[1] != 0).all()
    assert layer.sites["table.weight"].fixed is not None
    with pytest.raises(
        ValueError, match=r"'weight' of EmbeddingBag cannot .* max_norm=1.0 overwrites .*'weight': None"
    ):
        bayes(nn.EmbeddingBag(3, 2, max_norm=1.0), priors.Normal())


def test_a_table_with_max_norm_and_without_a_prior_is_left_to_torch():
    net = Bag(nn.Embedding(WORDS, 3, max_norm=0.1))
    plain = copy.deepcopy(net)
    model = bayes(net, {"head.weight": priors.Normal()})
    x, y = sentences()
    ps.ELBO("local").loss(model, guides.Additive(model), x, y)
    with torch.no_grad():
        plain(x)
    torch.testing.assert_close(net.table.weight, plain.table.weight)


@pytest.mark.parametrize("estimator", ["local", "shared", "flipout"])
def test_pruned_entries_are_constants(estimator):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    torch_prune.l1_unstructured(net[0], "weight", amount=0.5)
    model = bayes(net, priors.Normal())
    guide = guides.Additive(model)
    x, y = torch.randn(20, 4), torch.randint(0, 2, (20,))
    cut = net[0].weight_mask == 0
    before = {key: value.clone() for key, value in guide.parameters_for("0.weight_orig").items()}
    terms = ps.ELBO(estimator).terms(model, guide, x, y)
    distribution = guide.site_distribution("0.weight_orig").base_dist.base_dist
    of_all = torch.distributions.kl_divergence(distribution, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(terms.sites["0.weight_orig"].kl, of_all[~cut].sum())
    ps.fit(model, guide, (x, y), epochs=2, lr=0.1, batch_size=10, estimator=estimator, progress=False, compile=False)
    for key, value in guide.parameters_for("0.weight_orig").items():
        assert torch.equal(value[cut], before[key][cut]) and not torch.equal(value[~cut], before[key][~cut])
    x2 = torch.randn(3, 4)
    assert ps.predict(model, guide, x2, mode="mean").probs.shape == (3, 2)


def test_reports_and_exports_leave_constants_alone():
    model = bayes(Bag(), priors.LogUniform())
    constant = torch.tensor([0.0, 2.0, 0.0])
    with torch.no_grad():
        model.net.table.weight[PAD] = constant
    guide = guides.WeightwiseAlpha(model, init_log_alpha=0.0)
    assert guide.zero_mean_gap().sites[0].weights == 3 * (WORDS - 1)
    assert guide.zero_mean_gap().sites[0].gap == pytest.approx(3 * (WORDS - 1) / 2)
    exported = guides.prune(guide).export(model, dense=True)
    assert torch.equal(exported.table.weight[PAD], constant)
    narrow = guides.to_variance_only(guide)
    assert torch.equal(narrow()["table.weight"][PAD], constant)
    grid = guides.CategoricalWeights(bayes(Bag(model.net.table), priors.Grid()))
    assert torch.equal(grid.export(model).table.weight[PAD], constant)


def test_copies_and_files_keep_the_constants(tmp_path):
    model = bayes(Bag(), priors.Normal())
    with torch.no_grad():
        model.net.table.weight[PAD] = 3.0
    guide = guides.PerSite(model, {"*": guides.Additive})
    other_model = bayes(Bag(), priors.Normal())
    other = guides.PerSite(other_model, {"*": guides.Additive})
    ps.save(tmp_path / "net", model, guide)
    ps.load(tmp_path / "net", other_model, other)
    for one in (
        copy.deepcopy(guide),
        other,
        copy.deepcopy(guide).double(),
        guide.parts[0].restricted_to(["table.weight"]),
    ):
        assert (one()["table.weight"][PAD] == 3.0).all()
