"""Five tasks, one after the other
===============================

The digits come in five parts: 0 or 1, then 2 or 3, and so on to 8 or 9; the question is always which of the two. A
network learns the parts in turn and never sees an earlier one again. Trained on as it is, it forgets. Variational
continual learning takes the posterior after one part as the prior for the next (Nguyen, Li, Bui, Turner, 2018); a few
examples of each part that are kept, a coreset, remind it at the end, before it predicts.

With a head for each part the parts hardly disturb each other; with one head for all they do. Run it without arguments
(two or three minutes).
"""

import statistics

import torch
from matplotlib import pyplot as plt
from torch import nn

import pyrostoch as ps

SEEDS, TASKS, KEPT = 3, 5, 20
digits = ps.data.load("digits")


def part(images, labels, task):
    """Images of two digits with the number of their part, and which of the two they are."""
    mask = labels // 2 == task
    return (images[mask].flatten(1), torch.full((int(mask.sum()),), task)), labels[mask] % 2


train = [part(digits.x_train, digits.y_train, task) for task in range(TASKS)]
test = [part(digits.x_test, digits.y_test, task) for task in range(TASKS)]


def joined(parts, begin=0, end=None):
    """Some examples of each part, as one data set."""
    x, task, y = zip(*((x[begin:end], task[begin:end], y[begin:end]) for (x, task), y in parts), strict=True)
    return (torch.cat(x), torch.cat(task)), torch.cat(y)


class Net(nn.Module):
    """A shared body, and a head for each task or one for all."""

    def __init__(self, heads):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 100), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(100, 2) for _ in range(heads))

    def forward(self, x, task):
        hidden = self.body(x)
        every = torch.stack([head(hidden) for head in self.heads], 1)
        return every[torch.arange(len(x)), task % len(self.heads)]


FIRST = {"*": ps.priors.Normal(0.0, 0.3)}


def model_of(net, prior, data):
    return ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=len(data[1]))


def learn(model, guide, data, seed):
    ps.fit(model, guide, data, epochs=150, batch_size=300, lr=0.03, seed=seed, progress=False, compile=False)


def accuracies(model, guide, tasks):
    found = []
    for x, y in test[:tasks]:
        prediction = ps.predict(model, guide, x, mode="mc:20", seed=0)
        found.append((prediction.probs.argmax(-1) == y).double().mean().item())
    return found


# %%
# A task's prior is the guide of the task before, and its guide starts there, too. Heads that are not used yet keep
# their prior, since nothing but the prior speaks of them.


def follow(old, data, heads):
    """Model and guide of what comes next."""
    model = model_of(Net(heads), FIRST if old is None else old, data)
    if old is None:
        return model, ps.guides.Additive(model, init_scale=0.2)
    loc, scale = (
        lambda site, name=name: getattr(old.site_distribution(site.name), name) for name in ("mean", "stddev")
    )
    return model, ps.guides.Additive(model, init_loc=loc, init_scale=scale)


def continual(heads, seed, kept=0):
    torch.manual_seed(seed)
    old, table = None, []
    for task in range(TASKS):
        data = joined(train[task : task + 1], kept)
        model, guide = follow(old, data, heads)
        learn(model, guide, data, seed)
        old = guide
        if kept and task == TASKS - 1:  # what the coreset adds serves predictions, and is not handed on
            few = joined(train[: task + 1], 0, kept)
            model, guide = follow(old, few, heads)
            learn(model, guide, few, seed)
        table.append(accuracies(model, guide, task + 1))
    return table


# %%
# Beside it: the same network trained on, task after task, without a prior from the past, and all tasks at once, which
# none of the others may do.


def trained_on(heads, seed):
    torch.manual_seed(seed)
    net, table = Net(heads), []
    for task in range(TASKS):
        model = model_of(net, None, train[task])
        guide = ps.guides.Additive(model)
        learn(model, guide, train[task], seed)
        table.append(accuracies(model, guide, task + 1))
    return table


def at_once(heads, seed):
    torch.manual_seed(seed)
    data = joined(train)
    model, guide = follow(None, data, heads)
    learn(model, guide, data, seed)
    return [accuracies(model, guide, task + 1) for task in range(TASKS)]


METHODS = {
    "trained on": trained_on,
    "posterior as prior": continual,
    f"the same, {KEPT} kept of each task": lambda heads, seed: continual(heads, seed, KEPT),
    "all tasks at once": at_once,
}
SETTINGS = {"a head for each task": TASKS, "one head": 1}
results = {
    setting: {name: [method(heads, seed) for seed in range(SEEDS)] for name, method in METHODS.items()}
    for setting, heads in SETTINGS.items()
}

for setting, rows in results.items():
    print(f"{setting}: accuracy on all five tasks after the last, %")
    for name, runs in rows.items():
        averages = [100 * statistics.mean(run[-1]) for run in runs]
        print(f"  {name:32s} {statistics.mean(averages):5.1f} ± {statistics.stdev(averages) / SEEDS**0.5:.1f}")

# %%
# The mean accuracy on the tasks so far, after each task. Nothing was chosen on the test digits: the settings are those
# of trials on held-out training digits.

figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
for axes, (setting, rows) in zip(panels, results.items(), strict=True):
    for (name, runs), color in zip(rows.items(), ("#D55E00", "#0072B2", "#009E73", "gray"), strict=True):
        means = [100 * statistics.mean(statistics.mean(run[task]) for run in runs) for task in range(TASKS)]
        axes.plot(range(1, TASKS + 1), means, color=color, marker="o", markersize=3, label=name)
    axes.set(title=setting, xlabel="tasks learned")
    axes.set_xticks(range(1, TASKS + 1))
panels[0].set_ylabel("accuracy on the tasks so far, %")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
plt.show()
