"""Random adapters of `peft` on networks of HuggingFace with random weights, where both are installed."""

import pytest
import torch

import pyrostoch as ps

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

N, TOKENS, WORDS = 16, 6, 40
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "num_labels": 3}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
SETTINGS = dict(batch_size=8, lr=1e-2, seed=0, compile=False, progress=False)


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=WORDS, **SIZES))


def distilbert():
    config = transformers.DistilBertConfig(vocab_size=WORDS, dim=32, n_layers=2, n_heads=4, hidden_dim=48, num_labels=3)
    return transformers.DistilBertForSequenceClassification(config)


def gpt2():
    config = transformers.GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, num_labels=3, **SPECIAL)
    return transformers.GPT2ForSequenceClassification(config)


def llama():
    return transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(vocab_size=WORDS, num_key_value_heads=2, **SIZES, **SPECIAL)
    )


def half():
    return bert().to(torch.bfloat16)


QUERIES = ("query", "value")
#: By name: the network, what is adapted, and further settings.
CASES = {
    "bert": (bert, QUERIES, {}),
    "distilbert": (distilbert, ("q_lin", "v_lin"), {}),
    "gpt2": (gpt2, ("c_attn",), {"fan_in_fan_out": True}),
    "llama": (llama, ("q_proj", "v_proj"), {}),
    "bfloat16": (half, QUERIES, {}),
    "rslora, dropout": (bert, QUERIES, {"use_rslora": True, "lora_dropout": 0.2}),
    "dora": (bert, QUERIES, {"use_dora": True}),
    "words": (bert, ("word_embeddings", "query"), {}),
    "head trained": (bert, QUERIES, {"modules_to_save": ["classifier"]}),
}


def build(case, change=None):
    make, targets, settings = CASES[case]
    torch.manual_seed(0)
    net = peft.get_peft_model(make(), peft.LoraConfig(r=2, target_modules=list(targets), **settings))
    if change is not None:
        change(net)
    model = ps.BayesianModel(
        net,
        prior={"*.lora_[ABe]*": ps.priors.Normal(0, 0.1)},  # of words, lora_embedding_A; not DoRA's magnitudes
        likelihood=ps.likelihoods.Categorical(output="logits"),
        num_data=N,
    )
    ps.leave_out_fixed(model)
    return model, ps.guides.Additive(model, init_scale=lambda site: 1e-3 if "lora_B" in site.name else 1e-2)


@pytest.fixture
def data():
    tokens = torch.randint(2, WORDS, (N, TOKENS))
    mask = torch.ones_like(tokens)
    mask[: N // 2, TOKENS // 2 :] = 0
    return {"input_ids": tokens, "attention_mask": mask}, torch.randint(0, 3, (N,))


@pytest.mark.parametrize("case", CASES)
def test_adapters_are_random_and_nothing_else_changes(case, data, tmp_path):
    model, guide = build(case)
    assert all("lora_" in name and "magnitude" not in name for name in model.sites)
    trained = [name for name, value in model.net.named_parameters() if value.requires_grad]
    before = {name: value.detach().clone() for name, value in model.net.named_parameters()}
    result = ps.fit(model, guide, data, epochs=2, checkpoint=tmp_path / "run.safetensors", **SETTINGS)
    assert all(map(torch.isfinite, map(torch.tensor, result.history["elbo"])))
    changed = [name for name, value in model.net.named_parameters() if not torch.equal(value, before[name])]
    assert changed == trained  # the head that is saved with the adapters; DoRA's sizes
    for name in model.sites:
        moved = guide.site_distribution(name).mean - model.net.get_parameter(name)
        assert moved.abs().max() > 1e-4, name
    assert all(row.treatment.startswith("shared (") for row in ps.decompose(model, guide, data, num_samples=1).sites)
    other, other_guide = build(case)
    ps.load(tmp_path / "run.safetensors", other, other_guide)
    one, two = (ps.predict(*pair, data[0], mode="mc:3", seed=1) for pair in ((model, guide), (other, other_guide)))
    assert torch.equal(one.probs, two.probs)
    assert (one.epistemic >= 0).all()


def enlarged(net):
    """Weights of a size at which adapters move the output."""
    with torch.no_grad():
        for value in net.parameters():
            if value.dim() > 1:
                value.mul_(8.0)


def test_a_prediction_is_the_average_over_merged_networks(data):
    model, guide = build("bert", enlarged)
    for name in model.sites:
        for key, value in {"loc": 0.3, "log_scale": -1.0}.items():
            torch.nn.init.normal_(guide.parameters_for(name)[key], value, 0.1)
    draws = 150
    total, squares = torch.zeros(N, 3), torch.zeros(N, 3)
    model.eval()
    with torch.no_grad():
        kept = {name: model.net.get_parameter(name).clone() for name in model.sites}
        for _ in range(draws):
            for name, value in guide().items():
                model.net.get_parameter(name).copy_(value)
            model.net.merge_adapter()
            probs = model.net(**data[0]).logits.softmax(-1)
            model.net.unmerge_adapter()
            total, squares = total + probs, squares + probs.square()
        for name, value in kept.items():
            model.net.get_parameter(name).copy_(value)
    mean = total / draws
    error = ((squares / draws - mean.square()).clamp(min=1e-10) * 2 / draws).sqrt()
    found = ps.predict(model, guide, data[0], mode=f"mc:{draws}").probs
    assert (squares / draws - mean.square()).max() > 1e-3  # the draws differ
    assert ((found - mean).abs() < 6 * error).all()


def test_checkpointed_layers_give_the_same_bits(data):
    def checkpointed(net):
        for part in net.modules():
            if hasattr(part, "gradient_checkpointing"):
                part.gradient_checkpointing, part._gradient_checkpointing_func = True, ps.effects.checkpoint

    ends = []
    for change in (None, checkpointed):
        model, guide = build("rslora, dropout", change)
        ps.fit(model, guide, data, epochs=2, **SETTINGS)
        ends.append(guide.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_torchs_own_checkpointing_is_refused(data):
    model, guide = build("bert", lambda net: net.activation_checkpointing_enable())
    with pytest.raises(RuntimeError, match=r"it holds 'base_model.*lora_A.*how-to/adapters"):
        ps.fit(model, guide, data, epochs=1, **SETTINGS)
