"""Bad batches that come late: validation data are checked throughout, a failed epoch is undone, NaN is named."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pyrostoch as ps
from pyrostoch.training import NonFiniteLossError

COUNT = 12
QUIET = {"progress": False, "compile": False}


def classifier(outputs=3):
    model = ps.BayesianModel(
        nn.Linear(2, outputs), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=COUNT
    )
    return model, ps.guides.Additive(model)


def labeled(change=None):
    x, y = torch.randn(COUNT, 2), torch.randint(0, 3, (COUNT,))
    if change is not None:
        change(x, y)
    return x, y


def set_last(x, y, label=None, value=None):
    if label is not None:
        y[-1] = label
    if value is not None:
        x[-1] = value


class Items(Dataset):
    """A map-style data set, which is not held in memory as tensors."""

    def __init__(self, x, y):
        self.x, self.y, self.read = x, y, 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


def in_form(form, x, y):
    if form == "tensors":
        return x, y
    return Items(x, y) if form == "data set" else DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)


BAD = {
    "label": ({"label": 7}, "labels from 0 to 2"),
    "nan": ({"value": torch.nan}, "inputs x"),
}


@pytest.mark.parametrize("form", ["tensors", "data set", "loader"])
@pytest.mark.parametrize("bad", BAD)
def test_every_batch_of_validation_data_is_checked_before_training(bad, form):
    change, message = BAD[bad]
    model, guide = classifier()
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    held_out = in_form(form, *labeled(lambda x, y: set_last(x, y, **change)))
    data = labeled()
    noise = torch.get_rng_state()
    with pytest.raises(ValueError, match=f"validation: .*{message}"):
        ps.fit(model, guide, data, epochs=1, batch_size=4, validation=held_out, seed=0, **QUIET)
    assert all(torch.equal(before[name], value) for name, value in guide.state_dict().items())
    assert torch.equal(noise, torch.get_rng_state())


def test_a_target_of_another_shape_in_a_later_batch_is_named():
    class Growing(Items):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x, y[None].expand(2) if index == COUNT - 1 else y[None].expand(1)

    x, y = labeled()
    loader = DataLoader(Growing(x, y.float()), batch_size=1)
    model = ps.BayesianModel(
        nn.Linear(2, 1), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(), num_data=COUNT
    )
    with pytest.raises(ValueError, match=r"validation: expected every target of shape \(1,\).* got \(2,\)"):
        ps.fit(model, ps.guides.Additive(model), (x, y.float()[:, None]), epochs=1, validation=loader, **QUIET)


def test_checking_validation_data_does_not_change_the_run():
    data, (x, y) = labeled(), labeled()
    found = []
    for held_out in ((x, y), DataLoader(TensorDataset(x, y), batch_size=COUNT)):
        torch.manual_seed(3)
        model, guide = classifier()
        ps.fit(model, guide, data, epochs=2, batch_size=4, validation=held_out, seed=0, **QUIET)
        found.append(guide.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("patience", [None, 2])
def test_a_nan_loss_on_validation_data_is_named(patience):
    class Overflowing(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            return torch.where(x[:, :1] > 100, torch.nan, out)

    model = ps.BayesianModel(
        Overflowing(2, 1), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(), num_data=COUNT
    )
    x, y = torch.randn(COUNT, 2), torch.randn(COUNT, 1)
    with pytest.raises(NonFiniteLossError, match=r"epoch 1: the loss on the validation data is NaN") as caught:
        ps.fit(
            model,
            ps.guides.Additive(model),
            (x, y),
            epochs=4,
            batch_size=4,
            validation=DataLoader(TensorDataset(torch.cat([x, x * 1e4]), torch.cat([y, y])), batch_size=COUNT),
            patience=patience,
            **QUIET,
        )
    assert caught.value.epoch == 1 and caught.value.where == ["the loss on the validation data"]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("when", [0, 1])
def test_a_failure_in_a_later_batch_undoes_its_epoch(when, compiled):
    class Failing(Items):
        def __getitem__(self, index):
            # The checks before the run read the first batch only.
            self.read += index == COUNT - 1
            if self.read > when:
                raise OSError("the disk is gone")
            return self.x[index], self.y[index]

    x, y = labeled()
    model, guide = classifier()
    states = [{name: value.clone() for name, value in guide.state_dict().items()}]

    def keep(row):
        states.append({name: value.clone() for name, value in guide.state_dict().items()})

    with pytest.raises(OSError, match="the disk is gone") as caught:
        ps.fit(
            model,
            guide,
            Failing(x, y),
            epochs=3,
            batch_size=4,
            lr=0.1,
            seed=0,
            shuffle=False,
            callback=keep,
            progress=False,
            compile=compiled,
        )
    assert len(states) == when + 1
    assert f"step 3 of epoch {when + 1}" in "".join(caught.value.__notes__)
    assert all(torch.equal(states[-1][name], value) for name, value in guide.state_dict().items())
    assert all(parameter.grad is None for parameter in guide.parameters())


def test_a_bad_label_in_a_later_batch_undoes_the_epoch():
    model, guide = classifier()
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    x, y = labeled(lambda x, y: set_last(x, y, label=5))
    with pytest.raises(ValueError, match="labels from 0 to 2.* 5"):
        ps.fit(model, guide, Items(x, y), epochs=1, batch_size=4, lr=0.1, shuffle=False, **QUIET)
    assert all(torch.equal(before[name], value) for name, value in guide.state_dict().items())


def test_classes_on_the_second_axis_are_explained():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(2, 3, 1)

        def forward(self, x):
            return self.conv(x)

    model = ps.BayesianModel(
        Tagger(), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=COUNT
    )
    x, y = torch.randn(COUNT, 2, 5), torch.randint(0, 3, (COUNT, 5))
    with pytest.raises(ValueError, match=r"classes on the last axis .*\(12, 3, 5\).*use Categorical\(axis=1\)"):
        ps.fit(model, ps.guides.Additive(model), (x, y), epochs=1, batch_size=COUNT, **QUIET)


def test_operations_that_vmap_runs_one_by_one_do_not_warn():
    class Attention(nn.Linear):
        def forward(self, x):
            h = super().forward(x)[:, None, None]
            return F.scaled_dot_product_attention(h, h, h).flatten(1)

    model = ps.BayesianModel(
        Attention(2, 4), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=COUNT
    )
    # Warnings are errors in these tests.
    prediction = ps.predict(model, ps.guides.Additive(model), torch.randn(5, 2), mode="mc:3", joint=True)
    assert prediction.probs.shape == (5, 4)
