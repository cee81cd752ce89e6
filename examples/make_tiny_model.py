"""Make a language model of 0.4 million random weights, with a tokenizer of bytes: enough to serve real requests.

    python examples/make_tiny_model.py DIRECTORY

Needs torch, transformers and tokenizers, which every vLLM environment has.
"""

import sys

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


def make_model() -> LlamaForCausalLM:
    """Two layers of four heads, the same weights every time."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=320,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).to(torch.bfloat16)


if __name__ == "__main__":
    make_tokenizer().save_pretrained(sys.argv[1])
    make_model().save_pretrained(sys.argv[1])
