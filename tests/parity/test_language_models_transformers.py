"""Decoders as whole models against transformers and sentence-transformers: their heads, directories and tokenizers."""

import gzip
import json

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

import jaxemb
from jaxemb.checkpoints import read_tensors, save_weights
from jaxemb.data import Tokenizer, pad
from jaxemb.pooling import LastToken
from jaxemb.pretraining import LanguageModel
from jaxemb.types import Tokens

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
base = pytest.importorskip("sentence_transformers.base.modules")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")

pytestmark = pytest.mark.slow

TEXTS = ["a cat sleeps on the sofa", "a kitten naps", "shares fell on monday, and then again", "naïve ☃"]
_SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
_SIZES |= {"intermediate_size": 48, "max_position_embeddings": 64, "vocab_size": 300}


def write_tokenizer(path, *, prefix=(), suffix=("<|end|>",), **config) -> None:
    """Bytes and their pairs, with special tokens around each text, as decoders have them."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|start|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(TEXTS, trainer)
    around = processors.TemplateProcessing(
        single=" ".join([*prefix, "$A", *suffix]), special_tokens=[(token, i) for i, token in enumerate(special)]
    )
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), around])
    backend.save(str(path / "tokenizer.json"))
    named = {"bos_token": "<|start|>", "eos_token": "<|end|>", "pad_token": "<|pad|>", "padding_side": "left"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, **named, **config}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


def randomise(model: torch.nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # defaults (unit norms, zero biases) would hide swapped tensors
            parameter.add_(0.1 * torch.randn_like(parameter))


LANGUAGE_MODELS = {
    "llama": transformers.LlamaConfig(**_SIZES),
    "qwen2": transformers.Qwen2Config(**_SIZES, tie_word_embeddings=True),
    "gemma2": transformers.Gemma2Config(**_SIZES, head_dim=8, final_logit_softcapping=2.0),
    "phi3": transformers.Phi3Config(**_SIZES, pad_token_id=0),
}


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_next_tokens_are_predicted_alike_and_heads_go_both_ways(name, tmp_path):
    theirs = transformers.AutoModelForCausalLM.from_config(LANGUAGE_MODELS[name], attn_implementation="eager").eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    write_tokenizer(tmp_path / "theirs")
    embedder = jaxemb.load(tmp_path / "theirs")
    assert isinstance(embedder.model.pooling, LastToken)
    ids = np.random.default_rng(0).integers(3, 290, (2, 17))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids), labels=torch.tensor(ids))

    @jax.jit
    def both(model, tokens):
        states = model.embedder.encoder(tokens)
        return model.logits(states), model.token_losses(states, tokens, chunk=5)

    logits, losses = both(LanguageModel.of(embedder), Tokens.from_mask(ids, np.ones_like(ids)))
    np.testing.assert_allclose(logits, expected.logits, atol=1e-4)
    np.testing.assert_allclose(losses.sum() / (2 * 16), expected.loss, rtol=1e-5)

    LanguageModel.of(embedder).into(embedder).save(tmp_path / "ours")
    ours, original = read_tensors(tmp_path / "ours"), read_tensors(tmp_path / "theirs")
    assert {n: t.tobytes() for n, t in ours.items()} == {n: t.tobytes() for n, t in original.items()}
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    with torch.no_grad():
        np.testing.assert_array_equal(again(torch.tensor(ids)).logits, expected.logits)


def _directory(tmp_path, config, pooling, heads, **options):
    """A directory that sentence-transformers wrote, and the model."""
    path = tmp_path / "body"
    body = transformers.AutoModel.from_config(config)
    randomise(body)
    body.save_pretrained(path)
    write_tokenizer(path, **options.pop("tokenizer", {}))
    parts = [base.Transformer(str(path)), modules.Pooling(config.hidden_size, pooling), *heads]
    theirs = SentenceTransformer(modules=parts, device="cpu", **options)
    theirs.save(str(tmp_path / "theirs"), create_model_card=False)
    return theirs, tmp_path / "theirs"


def _goes_both_ways(theirs, path, tmp_path, **how) -> None:
    """Vectors, bytes of tensors and of the tokenizer, and what the other configurations say."""
    expected = theirs.encode(TEXTS, **how)
    embedder = jaxemb.load(path)
    np.testing.assert_allclose(embedder.encode(TEXTS, **how), expected, atol=2e-5)
    ours = tmp_path / "ours"
    embedder.save(ours)
    files = [file.relative_to(path) for file in path.rglob("*") if file.suffix == ".safetensors"]
    assert files
    for file in files:
        tensors, original = read_tensors((ours / file).parent), read_tensors((path / file).parent)
        assert {n: t.tobytes() for n, t in tensors.items()} == {n: t.tobytes() for n, t in original.items()}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (path / name).exists():
            assert (ours / name).read_bytes() == (path / name).read_bytes()
    assert json.loads((ours / "config.json").read_text()) == json.loads((path / "config.json").read_text())
    again = SentenceTransformer(str(ours), device="cpu")
    np.testing.assert_array_equal(again.encode(TEXTS, **how), expected)
    assert again.prompts == theirs.prompts


def test_a_directory_as_qwen3_embedding_has_it(tmp_path):
    """Last tokens, padding on the left, a token at the end of each text, an instruction for queries alone."""
    prompts = {"query": "Instruct: Given a cat, find a sofa\nQuery:", "document": ""}
    template = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    theirs, path = _directory(
        tmp_path,
        transformers.Qwen3Config(**_SIZES, head_dim=16, tie_word_embeddings=True),
        "lasttoken",
        [base.Normalize()],
        prompts=prompts,
        tokenizer={"chat_template": template},
    )
    with pytest.raises(ValueError, match="by modality_config, texts are written as chat messages"):
        jaxemb.load(path)  # as its latest release makes of a new model with a chat template
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": false}')
    theirs = SentenceTransformer(str(path), device="cpu")
    for name in prompts:
        _goes_both_ways(theirs, path, tmp_path, prompt_name=name)
    messages = [{"role": "user", "content": "a cat"}]
    expected = theirs.tokenizer.apply_chat_template(messages, tokenize=False)
    assert jaxemb.load(path).tokenizer.chat(messages) == expected == "<|start|>user\na cat<|end|>\n"


def test_a_directory_as_embedding_gemma_has_it(tmp_path):
    """Both ways, the mean, two linear layers without biases, tokens at both ends of each text."""
    config = transformers.Gemma3TextConfig(
        **_SIZES, head_dim=16, sliding_window=6, sliding_window_pattern=2, use_bidirectional_attention=True
    )
    linear = [base.Dense(n, m, bias=False, activation_function=torch.nn.Identity()) for n, m in ((32, 48), (48, 32))]
    theirs, path = _directory(
        tmp_path,
        config,
        "mean",
        [*linear, base.Normalize()],
        prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
        tokenizer={"prefix": ("<|start|>",)},
    )
    _goes_both_ways(theirs, path, tmp_path, prompt_name="query")


@pytest.mark.parametrize(("causal", "pooling"), [(True, "lasttoken"), (False, "mean")])
def test_bare_language_models_are_pooled_as_there(causal, pooling, tmp_path):
    config = transformers.LlamaConfig(**_SIZES)
    if not causal:
        config.is_causal = False
    theirs = transformers.AutoModelForCausalLM.from_config(config)
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    whole = SentenceTransformer(str(tmp_path), device="cpu")
    assert whole[1].pooling_mode == pooling
    np.testing.assert_allclose(jaxemb.load(tmp_path).encode(TEXTS), whole.encode(TEXTS), atol=2e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("prefix", "suffix"), [((), ("<|end|>",)), (("<|start|>",), ()), (("<|start|>",), ("<|end|>",))]
)
def test_tokens_around_texts_are_those_of_transformers(prefix, suffix, side, tmp_path):
    write_tokenizer(tmp_path, prefix=prefix, suffix=suffix, truncation_side=side, add_bos_token=True)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = ["", *TEXTS, "<|start|> inside", " ".join(TEXTS) * 3]
    ours = Tokenizer.from_directory(tmp_path)
    assert [ids.tolist() for ids in ours(texts)] == theirs(texts)["input_ids"]
    cut = theirs(texts, truncation=True, max_length=8)["input_ids"]
    assert [ids.tolist() for ids in ours(texts, 8)] == cut
    plain = theirs(texts, truncation=True, max_length=8, add_special_tokens=False)["input_ids"]
    assert [ids.tolist() for ids in ours.encode(texts, 8, special_tokens=False).ids] == plain


@pytest.fixture(scope="module")
def smollm2(models_dir):
    path = models_dir("smollm2-135m-instruct")
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return path, model, transformers.AutoTokenizer.from_pretrained(path), jaxemb.load(path)


def test_smollm2_predicts_what_it_predicts_in_transformers(smollm2, data_dir):
    """A real Llama with a real tokenizer: logits to 1e-3, and the perplexity of real texts."""
    _, theirs, tokenizer, embedder = smollm2
    with gzip.open(data_dir / "text_corpora" / "masc.txt.gz", "rt", encoding="utf-8") as file:
        texts = [line.strip() for line, _ in zip(file, range(4000), strict=False) if len(line) > 200][:8]
    encoded = embedder.tokenizer.encode(texts, 64)
    expected = tokenizer(texts, truncation=True, max_length=64)["input_ids"]
    assert [ids.tolist() for ids in encoded.ids] == expected
    tokens = pad(encoded.ids, length=64)
    model = LanguageModel.of(embedder)
    assert model.head.table is None

    @jax.jit
    def both(model, tokens):
        states = model.embedder.encoder(tokens)
        return model.logits(states[:, -1]), model.token_losses(states, tokens), states

    last, losses, states = both(model, tokens)
    ids, mask = torch.tensor(np.asarray(tokens.ids)).long(), torch.tensor(np.asarray(tokens.mask)).long()
    with torch.no_grad():
        output = theirs(ids, attention_mask=mask)
    logits = np.asarray(jax.jit(lambda model, x: model.logits(x))(model, states))
    real = mask.numpy() == 1
    np.testing.assert_allclose(logits[real], output.logits.numpy()[real], atol=1e-3)
    log_p = output.logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].numpy()
    perplexity = np.exp(-log_p[real[:, 1:]].mean())
    np.testing.assert_allclose(np.exp(losses.sum() / real[:, 1:].sum()), perplexity, rtol=1e-4)
    assert 5 < perplexity < 100
    np.testing.assert_allclose(last[real[:, -1]], output.logits.numpy()[:, -1][real[:, -1]], atol=1e-3)


def test_smollm2_is_written_as_it_was_read(smollm2, tmp_path):
    path, _, tokenizer, embedder = smollm2
    original, saved = read_tensors(path), save_weights(embedder.model.encoder, embedder.format.encoder)
    assert {n: t.tobytes() for n, t in saved.items()} == {n: t.tobytes() for n, t in original.items()}
    embedder.save(tmp_path / "ours")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (path / name).read_bytes()
    messages = [{"role": "user", "content": "Is <b>2 + 3</b> 5?"}]
    for prompted in (False, True):
        text = embedder.tokenizer.chat(messages, add_generation_prompt=prompted)
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)
        assert text == expected
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=prompted)["input_ids"]
        assert embedder.tokenizer.encode([text], special_tokens=False).ids[0].tolist() == ids
