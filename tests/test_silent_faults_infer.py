"""Errors in training and prediction that would go unnoticed: each case is handled correctly, or refused."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrostoch as ps


def model_of(net, num_data=20):
    return ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(1.0), num_data=num_data)


def regression_data():
    x = torch.linspace(-1, 1, 20)[:, None]
    return x, 3 * x


def test_a_checkpoint_of_another_likelihood_or_network_is_refused(tmp_path):
    def model_and_guide(noise, net=None):
        model = ps.BayesianModel(
            nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1)) if net is None else net,
            prior=ps.priors.Normal(),
            likelihood=ps.likelihoods.Gaussian(noise),
            num_data=20,
        )
        return model, ps.guides.Additive(model)

    ps.save(tmp_path / "a.safetensors", *model_and_guide(0.1))
    ps.load(tmp_path / "a.safetensors", *model_and_guide(0.1))
    with pytest.raises(ValueError, match=r"expected the likelihood Gaussian\(scale=5\), got Gaussian\(scale=0.1\)"):
        ps.load(tmp_path / "a.safetensors", *model_and_guide(5.0))
    with pytest.raises(ValueError, match="expected the network .*ReLU"):
        ps.load(
            tmp_path / "a.safetensors",
            *model_and_guide(0.1, nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))),
        )


def test_predictive_draws_keep_their_own_dtype():
    model = model_of(nn.Linear(1, 1), num_data=20)
    x, _ = regression_data()
    found = ps.to_arviz(model, ps.guides.Additive(model), (x, torch.zeros(20, 1, dtype=torch.long)), draws=5)
    drawn = found.posterior_predictive["obs"].values
    assert drawn.dtype.kind == "f" and (drawn != drawn.round()).any()


def test_parameters_of_the_global_store_are_refused_by_fit():
    class Stored(nn.Module):
        def forward(self, x, y=None):
            loc = pyro.param("stored_loc", torch.zeros(1, 1))
            pyro.sample("weight", dist.Normal(loc, 0.1).to_event(2))

    model = model_of(nn.Linear(1, 1), num_data=20)
    with pytest.raises(ValueError, match="'stored_loc' made by pyro.param"):
        ps.fit(model, Stored(), regression_data(), epochs=1, progress=False)
    assert len(pyro.get_param_store()) == 0


def test_items_of_a_subclass_of_tensordataset_are_used():
    class Augmented(torch.utils.data.TensorDataset):
        asked = 0

        def __getitem__(self, index):
            type(self).asked += 1
            return super().__getitem__(index)

    model = model_of(nn.Linear(1, 1), num_data=20)
    ps.fit(model, ps.guides.Additive(model), Augmented(*regression_data()), epochs=1, progress=False)
    assert Augmented.asked >= 20


def test_the_nll_of_several_labels_per_example_is_that_of_the_example():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 9, bias=False)

        def forward(self, x):
            return self.linear(x).reshape(-1, 3, 3)

    model = ps.BayesianModel(
        Positions(), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=20
    )
    guide = ps.guides.Additive(model, init_scale=1e-9)
    x, y = torch.randn(20, 2), torch.randint(0, 3, (20, 3))
    expected = -ps.predict(model, guide, x, y=y, mode="mc:2").log_density
    row = ps.compare(model, guide, (x, y), modes=("mc:2",))["mc:2"]
    assert row.nll == pytest.approx(expected.mean().item(), rel=1e-5)
    assert row.nll_stderr == pytest.approx(expected.std().item() / 20**0.5, rel=1e-4)


def test_generators_of_samplers_are_found_and_those_of_held_out_data_restored():
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

    from pyrostoch.infer.data_sets import as_batches
    from pyrostoch.prediction.validation import predictive_loss

    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(*regression_data())
    sampler = BatchSampler(RandomSampler(data, generator=generator), 5, drop_last=False)
    held_out = as_batches(DataLoader(data, batch_sampler=sampler), 5)
    assert held_out.generators() == [generator]
    before = generator.get_state()
    model = model_of(nn.Linear(1, 1))
    predictive_loss(model, ps.guides.Additive(model), held_out, torch.device("cpu"), estimator="local")
    assert torch.equal(generator.get_state(), before)


def test_a_shuffling_loader_is_refused_by_arviz_even_where_all_targets_are_equal():
    from torch.utils.data import DataLoader, TensorDataset

    model = model_of(nn.Linear(1, 1))
    data = TensorDataset(torch.linspace(-1, 1, 20)[:, None], torch.ones(20, 1))
    with pytest.raises(ValueError, match="the examples changed places"):
        ps.to_arviz(model, ps.guides.Additive(model), DataLoader(data, batch_size=20, shuffle=True), draws=3)


def test_a_checkpoint_of_untied_weights_does_not_load_into_tied_ones(tmp_path):
    def model_and_guide(tied):
        net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        if tied:
            net[1].weight = net[0].weight
        model = ps.BayesianModel(net, prior=None, likelihood=ps.likelihoods.Gaussian(1.0), num_data=5)
        return model, ps.guides.Additive(model)

    ps.save(tmp_path / "a.safetensors", *model_and_guide(False))
    with pytest.raises(ValueError, match="1.weight is 0.weight"):
        ps.load(tmp_path / "a.safetensors", *model_and_guide(True))
