"""Tiny tokenizers with the special tokens of each family, trained on a few words."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

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
