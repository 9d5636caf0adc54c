"""Padded sentences
================

Padding that stays constant, and labels that a mask leaves out.
"""

import pyro.distributions as dist
import torch
from matplotlib import pyplot as plt
from torch import nn

import pyrostoch as ps

torch.manual_seed(0)
WORDS, LONGEST, PAD = 30, 10, 0


class Tagger(nn.Module):
    """Logits of two tags for each word, from the word and its neighbors; returns them with the mask of real words."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(WORDS, 8, padding_idx=PAD)  # this row is no random variable
        self.mix = nn.Conv1d(8, 16, 3, padding=1)
        self.out = nn.Linear(16, 2)

    def forward(self, words):
        hidden = torch.relu(self.mix(self.table(words).movedim(-1, 1)))
        return self.out(hidden.movedim(1, -1)), words != PAD


def sentences(count):
    """A word is tagged if its number is even and the word before it is odd."""
    words = torch.randint(1, WORDS, (count, LONGEST))
    length = torch.randint(3, LONGEST + 1, (count, 1))
    words = torch.where(torch.arange(LONGEST) < length, words, PAD)
    before = nn.functional.pad(words, (1, 0))[:, :-1]
    return words, ((words % 2 == 0) & (before % 2 == 1)).long()  # what stands at padding does not matter


train, test = sentences(600), sentences(200)
model = ps.BayesianModel(
    Tagger(),
    prior=ps.priors.Normal(0.0, 0.5),
    likelihood=lambda out: dist.Categorical(logits=out[0]).mask(out[1]),
    num_data=600,
)
guide = ps.guides.Additive(model)
ps.fit(model, guide, train, epochs=40, batch_size=100, lr=1e-2, seed=0, progress=False)
print(ps.compare(model, guide, test, modes=("mean", "mc:20"), seed=0))

# The same words with more padding behind them: the same probabilities.
words = test[0][:1]
padded = nn.functional.pad(words, (0, 6), value=PAD)
for sentence in (words, padded):
    print(ps.predict(model, guide, sentence, mode="mc:20", seed=0).probs[0, :3, 1])
print("the padding row of a draw:", guide()["table.weight"][PAD].tolist())

# %%
# Probabilities of the tag in twelve test sentences: padding is gray, and true tags are marked.

words, tags = test[0][:12], test[1][:12]
probability = ps.predict(model, guide, words, mode="mc:20", seed=0).probs[..., 1].masked_fill(words == PAD, torch.nan)
figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
axes.set_facecolor("lightgray")
picture = axes.imshow(probability, cmap="Blues", vmin=0, vmax=1)
rows, columns = (tags.bool() & (words != PAD)).nonzero().T
axes.plot(columns, rows, "o", color="#D55E00", markersize=4)
axes.set(xlabel="word", ylabel="sentence", title="Dots: the true tags")
figure.colorbar(picture, label="probability of the tag")
plt.show()
