"""Transformers of HuggingFace, made from small configurations: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .entry import Made, network

B = 5
_NEEDS = {"requires": "transformers"}


class _Read(nn.Module):
    """What a network of HuggingFace returns by a name, for the first or the last token if it is a sequence."""

    def __init__(self, net: nn.Module, field: str, token: int | None = None) -> None:
        super().__init__()
        self.net, self.field, self.token = net, field, token

    def forward(self, tokens: Tensor) -> Tensor:
        out = getattr(self.net(tokens), self.field)
        return out if self.token is None else out[:, self.token]


class _Head(nn.Module):
    """A linear layer on a token of an encoder."""

    def __init__(self, encoder: nn.Module, size: int, token: int) -> None:
        super().__init__()
        self.encoder, self.head = _Read(encoder, "last_hidden_state", token), nn.Linear(size, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(tokens))


def _tokens() -> Tensor:
    return torch.randint(3, 20, (B, 6))


def _bert(**options: Any) -> Any:
    from transformers import BertConfig

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    return BertConfig(vocab_size=20, max_position_embeddings=16, **sizes, **options)


def _gpt2() -> Any:
    from transformers import GPT2Config

    return GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1)


def _llama() -> Any:
    from transformers import LlamaConfig

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    return LlamaConfig(vocab_size=20, max_position_embeddings=16, num_key_value_heads=2, **sizes)


@network("BERT, random head", random=("head.*",), **_NEEDS)
def bert_head() -> Made:
    from transformers import BertModel

    return _Head(BertModel(_bert()), 8, 0), _tokens()


@network("BERT for classification, random classifier", random=("net.classifier.*",), **_NEEDS)
def bert_classifier() -> Made:
    from transformers import BertForSequenceClassification

    return _Read(BertForSequenceClassification(_bert()), "logits"), _tokens()


@network("BERT for classification, random queries", random=("*.query.weight",), scale=0.5, **_NEEDS)
def bert_queries() -> Made:
    from transformers import BertForSequenceClassification

    return _Read(BertForSequenceClassification(_bert()), "logits"), _tokens()


@network("GPT-2, random head", random=("head.*",), **_NEEDS)
def gpt2_head() -> Made:
    from transformers import GPT2Model

    return _Head(GPT2Model(_gpt2()), 8, -1), _tokens()


@network("GPT-2, random projections", random=("*.c_proj.weight",), **_NEEDS)
def gpt2_projections() -> Made:
    from transformers import GPT2Model

    return _Read(GPT2Model(_gpt2()), "last_hidden_state", -1), _tokens()


@network("T5 encoder, random head", random=("head.*",), **_NEEDS)
def t5_head() -> Made:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2)
    return _Head(T5EncoderModel(config), 8, 0), _tokens()


@network("Llama, random output layer", random=("net.lm_head.weight",), **_NEEDS)
def llama_output() -> Made:
    from transformers import LlamaForCausalLM

    return _Read(LlamaForCausalLM(_llama()), "logits", -1), _tokens()


@network("Llama, random adapters", random=("*lora_B*",), requires="peft")
def llama_adapters() -> Made:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaModel

    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    return _Read(get_peft_model(LlamaModel(_llama()), config), "last_hidden_state", -1), _tokens()


@network("BERT with adapters, random last adapter", random=("*classifier*.weight",), requires="peft")
def bert_adapters() -> Made:
    from peft import LoraConfig, get_peft_model
    from transformers import BertForSequenceClassification

    config = LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    return _Read(get_peft_model(BertForSequenceClassification(_bert()), config), "logits"), _tokens()
