"""Five tasks, one after the other
===============================

The digits come in five parts: 0 or 1, then 2 or 3, and so on to 8 or 9. A network with a shared body and a head for
each part learns them in turn and never sees an earlier part again. Trained further as it is, it may forget. Variational
continual learning takes the posterior after one part as the prior for the next (Nguyen, Li, Bui, Turner, 2018); a few
examples of each part that are kept, a coreset, remind it before it predicts.

Run it without arguments (about two minutes).
"""

import statistics

import torch
from matplotlib import pyplot as plt
from torch import nn

import pyrostoch as ps

SEEDS, TASKS, KEPT = 3, 5, 20
digits = ps.data.load("digits")


def part(images, labels, task):
    """Images of two digits, and which of the two they are."""
    mask = labels // 2 == task
    return images[mask].flatten(1), labels[mask] % 2


train = [part(digits.x_train, digits.y_train, task) for task in range(TASKS)]
test = [part(digits.x_test, digits.y_test, task) for task in range(TASKS)]


class Net(nn.Module):
    """The shared body, and the head of one task."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 100), nn.ReLU())
        self.head = nn.Linear(100, 2)

    def forward(self, x):
        return self.head(self.body(x))


class AllHeads(nn.Module):
    """The shared body and all heads; the task of an example is an input."""

    def __init__(self):
        super().__init__()
        self.body = Net().body
        self.heads = nn.ModuleList(nn.Linear(100, 2) for _ in range(TASKS))

    def forward(self, x, task):
        hidden = self.body(x)
        return torch.stack([head(hidden) for head in self.heads], 1)[torch.arange(len(x)), task]


def model_of(net, prior, data):
    return ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=len(data[1]))


def learn(model, guide, data, seed, epochs=80):
    ps.fit(model, guide, data, epochs=epochs, batch_size=100, lr=1e-2, seed=seed, progress=False, compile=False)


def accuracy(model, guide, data):
    prediction = ps.predict(model, guide, data[0], mode="mc:20", seed=0)
    return (prediction.probs.argmax(-1) == data[1]).double().mean().item()


# %%
# The prior of a task: the body has the posterior of the task before, and the new head a prior of its own. The guide
# starts from that posterior, too; it would otherwise start from the network's own weights.

FIRST = ps.priors.Normal(0.0, 0.3)


def next_task(old, data):
    """Model and guide of a task, after the guide of the one before."""
    rules = {"*": FIRST} if old is None else {"*": FIRST, "body.*": ps.priors.from_guide(old)}
    model = model_of(Net(), rules, data)

    def loc(site):
        return site.init if old is None or site.name.startswith("head") else old.site_distribution(site.name).mean

    def scale(site):
        fresh = old is None or site.name.startswith("head")
        return 0.05 if fresh else old.site_distribution(site.name).base_dist.scale

    return model, ps.guides.Additive(model, init_loc=loc, init_scale=scale)


def with_head(guide, heads, task):
    """A guide with the body as it is now, and the head as it was after its own task."""
    model = model_of(Net(), {"*": FIRST}, train[task])
    merged = ps.guides.Additive(model)
    merged.load_state_dict({**guide.state_dict(), **heads[task]})
    return model, merged


def head_of(guide):
    return {name: value.clone() for name, value in guide.state_dict().items() if "head" in name}


def continual(seed, coreset):
    """Accuracy on each task so far, after each task."""
    torch.manual_seed(seed)
    old, heads, table = None, [], []
    for task in range(TASKS):
        kept = KEPT if coreset else 0  # these are learned from only before predictions
        data = tuple(values[kept:] for values in train[task])
        model, guide = next_task(old, data)
        learn(model, guide, data, seed)
        old = guide
        heads.append(head_of(guide))
        row = []
        for earlier in range(task + 1):
            model, merged = with_head(guide, heads, earlier)
            if coreset:  # a prediction's own posterior: what the coreset adds is not handed on
                few = tuple(values[:KEPT] for values in train[earlier])
                model, reminded = model_of(Net(), merged, few), merged
                learn(model, reminded, few, seed)
            row.append(accuracy(model, merged, test[earlier]))
        table.append(row)
    return table


# %%
# Without a prior from the past the same network is trained on, task after task; and with all tasks at once, which none
# of the others may do, the shared body is as good as it can be.


def fine_tuned(seed):
    torch.manual_seed(seed)
    net, heads, table = Net(), [], []
    for task in range(TASKS):
        net.head = nn.Linear(100, 2)
        model = model_of(net, None, train[task])
        learn(model, ps.guides.Additive(model), train[task], seed)
        heads.append(net.head)
        row = []
        for earlier in range(task + 1):
            net.head = heads[earlier]
            row.append(accuracy(model, ps.guides.Additive(model), test[earlier]))
        table.append(row)
    return table


def joint(seed):
    torch.manual_seed(seed)
    x, y = (torch.cat([values[place] for values in train]) for place in (0, 1))
    of_task = torch.cat([torch.full((len(values[1]),), task) for task, values in enumerate(train)])
    model = model_of(AllHeads(), {"*": FIRST}, (x, y))
    guide = ps.guides.Additive(model, init_scale=0.05)
    learn(model, guide, ((x, of_task), y), seed)
    last = [accuracy(model, guide, ((x, torch.full((len(y),), task)), y)) for task, (x, y) in enumerate(test)]
    return [last] * TASKS


methods = {
    "trained on, no prior from the past": fine_tuned,
    "posterior as prior": lambda seed: continual(seed, coreset=False),
    f"posterior as prior, {KEPT} kept of each task": lambda seed: continual(seed, coreset=True),
    "all tasks at once": joint,
}
results = {name: [method(seed) for seed in range(SEEDS)] for name, method in methods.items()}

print("accuracy on all five tasks after the last, %")
for name, runs in results.items():
    averages = [100 * statistics.mean(run[-1]) for run in runs]
    print(f"{name:42s} {statistics.mean(averages):5.1f} ± {statistics.stdev(averages) / SEEDS**0.5:.1f}")

# %%
# The accuracy on each task while the later ones are learned, averaged over seeds. Nothing was chosen on the test
# digits: the settings are those of a trial on held-out training digits.

figure, panels = plt.subplots(1, TASKS, figsize=(12, 3), sharey=True, layout="constrained")
for (name, runs), color in zip(results.items(), ("#D55E00", "#0072B2", "#009E73", "gray"), strict=True):
    for task, axes in enumerate(panels):
        places = range(task, TASKS)
        values = [100 * statistics.mean(run[after][task] for run in runs) for after in places]
        axes.plot([place + 1 for place in places], values, color=color, marker="o", markersize=3, label=name)
        axes.set(title=f"{2 * task} or {2 * task + 1}", xlabel="after task", xlim=(0.8, TASKS + 0.2))
        axes.set_xticks(range(1, TASKS + 1))
panels[0].set_ylabel("accuracy on the test digits, %")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
plt.show()
