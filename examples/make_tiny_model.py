"""Make a language model of 0.4 million random weights, with a tokenizer of bytes: enough to serve real requests.

    python examples/make_tiny_model.py DIRECTORY [--heads N]

Its four heads can be shared by 1, 2 or 4 ranks; N heads, N even, by every divisor of N / 2.
Needs torch, transformers and tokenizers, which every vLLM environment has.
"""

import argparse
import math

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte."""
    vocabulary = {text: number for number, text in enumerate((*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=SPECIAL[0]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, unk_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    )


def make_model(heads: int) -> LlamaForCausalLM:
    """Two layers of so many heads, the same weights every time."""
    torch.manual_seed(0)
    step = math.lcm(64, heads)  # engines pad the vocabulary to multiples of 64, and share it like the heads
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=math.ceil(320 / step) * step,
            hidden_size=32 * heads,
            intermediate_size=64 * heads,
            num_hidden_layers=2,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).to(torch.bfloat16)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory")
    parser.add_argument("--heads", type=int, default=4)
    options = parser.parse_args()
    make_tokenizer().save_pretrained(options.directory)
    make_model(options.heads).save_pretrained(options.directory)
