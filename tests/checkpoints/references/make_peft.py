"""Writes peft.npz: tiny encoders, adapters of them that PEFT saved, and its outputs. Run where `peft` is installed."""

import json
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import load_file

SIZES = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 20}
BASES = {
    "bert": transformers.BertConfig(**SIZES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "llama": transformers.LlamaConfig(**SIZES, num_key_value_heads=1),
    "phi3": transformers.Phi3Config(**SIZES, num_key_value_heads=1, pad_token_id=0, bos_token_id=1, eos_token_id=2),
}
CASES = {
    "llama": {"target_modules": ["q_proj", "v_proj"]},
    "llama_all_dora": {"target_modules": "all-linear", "use_dora": True},
    "phi3_fused": {"target_modules": ["qkv_proj", "gate_up_proj"], "use_rslora": True},
    "bert_patterns": {
        "target_modules": ["query", "output.dense"],
        "layers_to_transform": [0, 2],
        "rank_pattern": {"query": 2},
        "alpha_pattern": {r"layer.0.attention.self.query": 16, "dense": 3},
    },
    "bert_table_and_biases": {"target_modules": r".*(query|word_embeddings)", "bias": "lora_only"},
}
IDS = np.random.default_rng(0).integers(3, 24, (2, 7))


def outputs(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(IDS)).last_hidden_state.numpy()


def files(directory, tensors, config):
    found = {f"tensor/{name}": tensor for name, tensor in load_file(directory / tensors).items()}
    return {**found, "config": np.array((directory / config).read_text())}


def base(kind, directory):
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(BASES[kind])
    model.save_pretrained(directory)
    return model


def adapted(model, options, directory):
    model = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=6, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(directory)
    return outputs(model)


if __name__ == "__main__":
    found = {"ids": IDS, "cases": np.array(json.dumps({name: name.split("_")[0] for name in CASES}))}
    with tempfile.TemporaryDirectory() as folder:
        for kind in BASES:
            base(kind, Path(folder) / kind)
            of_base = files(Path(folder) / kind, "model.safetensors", "config.json")
            found |= {f"base/{kind}/{name}": value for name, value in of_base.items()}
        for name, options in CASES.items():
            path = Path(folder) / name
            y = adapted(base(kind := name.split("_")[0], Path(folder) / kind), options, path)
            of_adapter = files(path, "adapter_model.safetensors", "adapter_config.json")
            found |= {f"{name}/{key}": value for key, value in of_adapter.items()} | {f"{name}/y": y}
    np.savez_compressed(Path(__file__).with_name("peft.npz"), **found)
