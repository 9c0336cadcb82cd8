"""Builds `tiny-vlm`: a vision-language model of random weights, for tests of what is around one.

It talks nonsense, in the same words everywhere: the folder holds the same weights as a Hugging
Face model (config, safetensors, tokenizer, image processor, chat template), which vLLM and
transformers load, and as model.gguf and mmproj.gguf for llama.cpp. 2 MB, built in a second from
numpy, tokenizers, safetensors and gguf, without torch.

The family is Idefics3 (SmolVLM), the one that all of these servers load without torchvision. Text
and vision have two layers each. A picture is cut into at most 2x2 tiles of 56 pixels and an
overview, 4 tokens each.

One channel of the residual stream is kept constant, so that lm_head[:, 0] acts as a bias per token:
printable tokens and the closing quote are likely, control bytes are not, and an answer under a
schema ends by itself instead of running into max_tokens.

    python -m phototagger.tiny_vlm FOLDER
"""

import contextlib
import errno
import json
import shutil
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phototagger.files import sha256_file

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter
    from tokenizers import Tokenizer

    Weights = dict[str, np.ndarray]

NAME = "tiny-vlm"
RECIPE = "1"  # raised when a build gives other files than before
DIGESTS = "build.json"  # recipe and SHA-256 of every other file of the folder

VOCABULARY, HIDDEN, FFN, LAYERS, HEADS, KV_HEADS = 512, 64, 128, 2, 2, 1
HEAD_WIDTH = 32  # the least that vLLM's attention on a CPU takes
MAX_LENGTH = 4096  # tokens
TILE, PATCH, SCALE = 56, 14, 2  # a tile is 16 patches, merged 2x2 into 4 tokens
LONGEST_EDGE = 2 * TILE  # a picture gives at most 2x2 tiles and an overview
IMAGE_TOKENS = (TILE // PATCH // SCALE) ** 2
MEAN = STD = [0.5, 0.5, 0.5]

BOS, EOS, PAD, IMAGE = "<|im_start|>", "<end_of_utterance>", "<|endoftext|>", "<image>"
SPECIAL = [
    *(PAD, BOS, EOS, IMAGE, "<fake_token_around_image>", "<global-img>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
]

# What the tokenizer learns its merges from. llama.cpp looks up "\n\n" as one token.
CORPUS = [
    "You are a helpful assistant. Describe the photo and answer with JSON only.\n\n",
    "A photo of a beach at sunset with people walking a dog near the water.\n\n",
    "mountains forest river city street night portrait indoor outdoor food car",
    '{"caption": "a dog on the beach", "tags": ["dog", "beach", "sea"], "confidence": 0.9}',
    '{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}',
    "true false null 0 1 2 3 4 5 6 7 8 9 . , : ; ! ? ( ) [ ] { }",
]

CHAT_TEMPLATE = """\
<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}: \
{% if m['content'] is string %}{{ m['content'] }}{% else %}\
{% for c in m['content'] %}\
{% if c['type'] == 'image' %}<image>{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}\
{% endfor %}{% endif %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""


def build(folder: Path) -> Path:
    """Build the model into `folder`, whole or not at all; quick if it is there. Returns `folder`.

    Several processes may build at once: the files are the same, and the first to finish wins.
    """
    if _is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        tokenizer = _tokenizer()
        weights = _weights(tokenizer)
        _write_hugging_face(temporary, tokenizer, weights)
        _write_gguf_text(temporary / "model.gguf", tokenizer, weights)
        _write_gguf_vision(temporary / "mmproj.gguf", weights)
        digests = {file.name: sha256_file(file) for file in sorted(temporary.iterdir())}
        _write_json(temporary / DIGESTS, {"recipe": RECIPE, "sha256": digests})
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        built = json.loads((folder / DIGESTS).read_text("utf-8"))
        return built["recipe"] == RECIPE and all(
            sha256_file(folder / name) == digest for name, digest in built["sha256"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _publish(temporary: Path, folder: Path) -> None:
    """Rename a finished folder to its place, unless a whole one is there; a broken one goes."""
    while not _is_whole(folder):
        try:
            temporary.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            old = folder.with_name(f".{uuid.uuid4().hex}.tmp")
            with contextlib.suppress(FileNotFoundError):
                folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


# ------------------------------------------------------------------------- tokenizer and weights


def _tokenizer() -> "Tokenizer":
    """A byte-level BPE of at most VOCABULARY tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    return tokenizer


def _prior(tokenizer: "Tokenizer") -> "np.ndarray":
    """Wanted unconditional log-odds [VOCABULARY] of each token; 0 is an ordinary printable one."""
    import numpy as np

    prior = np.full(VOCABULARY, -6.0)
    for token in range(tokenizer.get_vocab_size()):
        text = tokenizer.decode([token])
        if text and text.isascii() and text.isprintable():
            prior[token] = 0.0
    for special in SPECIAL:
        prior[tokenizer.token_to_id(special)] = -12.0
    prior[tokenizer.token_to_id('"')] = 5.0
    prior[tokenizer.token_to_id(EOS)] = 3.0
    return prior


def _weights(tokenizer: "Tokenizer") -> "Weights":
    """Float32 tensors by their Hugging Face name. The order of the draws is part of the recipe."""
    import numpy as np

    random = np.random.RandomState(0)  # its stream is frozen: the same numbers in every numpy
    weights: Weights = {}

    def normal(name: str, *shape: int, std: float | None = None) -> None:
        scale = np.prod(shape[1:]) ** -0.5 if std is None else std
        weights[f"{name}.weight"] = random.standard_normal(shape) * scale

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = np.ones(HIDDEN)

    def biased(name: str) -> None:
        weights[f"{name}.bias"] = np.zeros(len(weights[f"{name}.weight"]))

    normal("model.text_model.embed_tokens", VOCABULARY, HIDDEN, std=1.0)
    weights["model.text_model.embed_tokens.weight"][:, 0] = 8.0  # the constant channel ...
    for i in range(LAYERS):
        layer = f"model.text_model.layers.{i}."
        norm(f"{layer}input_layernorm")
        norm(f"{layer}post_attention_layernorm")
        normal(f"{layer}self_attn.q_proj", HEADS * HEAD_WIDTH, HIDDEN)
        normal(f"{layer}self_attn.k_proj", KV_HEADS * HEAD_WIDTH, HIDDEN)
        normal(f"{layer}self_attn.v_proj", KV_HEADS * HEAD_WIDTH, HIDDEN)
        normal(f"{layer}self_attn.o_proj", HIDDEN, HEADS * HEAD_WIDTH)
        normal(f"{layer}mlp.gate_proj", FFN, HIDDEN)
        normal(f"{layer}mlp.up_proj", FFN, HIDDEN)
        normal(f"{layer}mlp.down_proj", HIDDEN, FFN)
        for writes in ("self_attn.o_proj", "mlp.down_proj"):
            weights[f"{layer}{writes}.weight"][0] = 0.0  # ... which nothing else writes to
    norm("model.text_model.norm")
    weights["model.text_model.norm.weight"][0] = 0.2  # makes it about 1 for the head
    normal("lm_head", VOCABULARY, HIDDEN, std=0.25)
    for token in ('"', EOS):  # their prior decides, not the noise
        weights["lm_head.weight"][tokenizer.token_to_id(token)] *= 0.1
    weights["lm_head.weight"][:, 0] = _prior(tokenizer)

    vision = "model.vision_model."
    normal(f"{vision}embeddings.patch_embedding", HIDDEN, 3, PATCH, PATCH)
    biased(f"{vision}embeddings.patch_embedding")
    normal(f"{vision}embeddings.position_embedding", (TILE // PATCH) ** 2, HIDDEN, std=0.1)
    for i in range(LAYERS):
        layer = f"{vision}encoder.layers.{i}."
        for name in ("layer_norm1", "layer_norm2"):
            norm(f"{layer}{name}")
            biased(f"{layer}{name}")
        for name, outputs, inputs in [
            *((f"self_attn.{each}", HIDDEN, HIDDEN) for each in _ATTENTION),
            ("mlp.fc1", FFN, HIDDEN),
            ("mlp.fc2", HIDDEN, FFN),
        ]:
            normal(f"{layer}{name}", outputs, inputs)
            biased(f"{layer}{name}")
    norm(f"{vision}post_layernorm")
    biased(f"{vision}post_layernorm")
    normal("model.connector.modality_projection.proj", HIDDEN, HIDDEN * SCALE**2)
    return {name: values.astype(np.float32) for name, values in weights.items()}


_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


# ---------------------------------------------------------------------------------- Hugging Face


def _write_hugging_face(folder: Path, tokenizer: "Tokenizer", weights: "Weights") -> None:
    from safetensors.numpy import save_file

    for name, value in _configs(tokenizer).items():
        _write_json(folder / name, value)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _configs(tokenizer: "Tokenizer") -> dict[str, dict[str, Any]]:
    """The JSON files that transformers and vLLM read, by name."""
    special = {
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": tokenizer.token_to_id(EOS),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }
    text = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_WIDTH,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": MAX_LENGTH,
        "tie_word_embeddings": False,
        **special,
        "dtype": "float32",
    }
    vision = {
        "model_type": "idefics3_vision",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "image_size": TILE,
        "patch_size": PATCH,
        "num_channels": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }
    return {
        "config.json": {
            "model_type": "idefics3",
            "architectures": ["Idefics3ForConditionalGeneration"],
            "image_token_id": tokenizer.token_to_id(IMAGE),
            "scale_factor": SCALE,
            "tie_word_embeddings": False,
            **special,
            "dtype": "float32",
            "text_config": text,
            "vision_config": vision,
        },
        "generation_config.json": {"do_sample": True, **special},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "model_max_length": MAX_LENGTH,
            "clean_up_tokenization_spaces": False,
        },
        "processor_config.json": {
            "processor_class": "Idefics3Processor",
            "image_seq_len": IMAGE_TOKENS,
        },
        "preprocessor_config.json": {
            "processor_class": "Idefics3Processor",
            "image_processor_type": "Idefics3ImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "do_image_splitting": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_pad": True,
            "rescale_factor": 1 / 255,
            "resample": 1,
            "size": {"longest_edge": LONGEST_EDGE},
            "max_image_size": {"longest_edge": TILE},
            "image_mean": MEAN,
            "image_std": STD,
        },
    }


# --------------------------------------------------------------------------------------- llama.cpp


def _write_gguf_text(path: Path, tokenizer: "Tokenizer", weights: "Weights") -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(NAME)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(VOCABULARY)
    writer.add_context_length(MAX_LENGTH)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_WIDTH)
    writer.add_value_length(HEAD_WIDTH)
    writer.add_rope_dimension_count(HEAD_WIDTH)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = [tokenizer.id_to_token(i) or f"<unused_{i}>" for i in range(VOCABULARY)]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([_token_type(token) for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.token_to_id(BOS))
    writer.add_eos_token_id(tokenizer.token_to_id(EOS))
    writer.add_pad_token_id(tokenizer.token_to_id(PAD))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    writer.add_tensor("token_embd.weight", weights["model.text_model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.text_model.norm.weight"])
    writer.add_tensor("output.weight", weights["lm_head.weight"])
    for i in range(LAYERS):
        source, target = f"model.text_model.layers.{i}.", f"blk.{i}."
        for ours, theirs in [
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ]:
            values = weights[f"{source}{theirs}.weight"]
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(ours)
            values = _interleave(values, heads) if heads else values
            writer.add_tensor(f"{target}{ours}.weight", values)
    _finish(writer)


def _token_type(token: str) -> int:
    from gguf import TokenType

    if token in SPECIAL:
        return TokenType.CONTROL
    return TokenType.UNUSED if token.startswith("<unused_") else TokenType.NORMAL


def _interleave(values: "np.ndarray", heads: int) -> "np.ndarray":
    """Rows [heads * 2 * n, m] in llama.cpp's order, which keeps rotary pairs side by side."""
    import numpy as np

    rows, columns = values.shape
    paired = values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2)
    return np.ascontiguousarray(paired.reshape(rows, columns))


def _write_gguf_vision(path: Path, weights: "Weights") -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.IDEFICS3)
    writer.add_vision_projection_dim(HIDDEN)
    writer.add_vision_image_size(TILE)
    writer.add_vision_preproc_image_size(LONGEST_EDGE)
    writer.add_vision_patch_size(PATCH)
    writer.add_vision_embedding_length(HIDDEN)
    writer.add_vision_feed_forward_length(FFN)
    writer.add_vision_block_count(LAYERS)
    writer.add_vision_head_count(HEADS)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_projector_scale_factor(SCALE)
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_mean(MEAN)
    writer.add_vision_image_std(STD)
    vision = "model.vision_model."
    for ours, theirs in [
        ("v.patch_embd.weight", f"{vision}embeddings.patch_embedding.weight"),
        ("v.patch_embd.bias", f"{vision}embeddings.patch_embedding.bias"),
        ("v.position_embd.weight", f"{vision}embeddings.position_embedding.weight"),
    ]:
        writer.add_tensor(ours, weights[theirs])
    for kind in ("weight", "bias"):
        for i in range(LAYERS):
            for ours, theirs in [
                ("attn_q", "self_attn.q_proj"),
                ("attn_k", "self_attn.k_proj"),
                ("attn_v", "self_attn.v_proj"),
                ("attn_out", "self_attn.out_proj"),
                ("ffn_up", "mlp.fc1"),
                ("ffn_down", "mlp.fc2"),
                ("ln1", "layer_norm1"),
                ("ln2", "layer_norm2"),
            ]:
                values = weights[f"{vision}encoder.layers.{i}.{theirs}.{kind}"]
                writer.add_tensor(f"v.blk.{i}.{ours}.{kind}", values)
        writer.add_tensor(f"v.post_ln.{kind}", weights[f"{vision}post_layernorm.{kind}"])
    writer.add_tensor(
        "mm.model.fc.weight", weights["model.connector.modality_projection.proj.weight"]
    )
    _finish(writer)


def _finish(writer: "GGUFWriter") -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m {__spec__.name} FOLDER")
    print(build(Path(sys.argv[1])))
