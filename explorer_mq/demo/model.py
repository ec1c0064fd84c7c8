"""A causal language model of 0.15 M parameters and a byte-level tokenizer, made on the spot.

``head_dim`` is 32 because vLLM's CPU attention takes nothing smaller; embeddings are untied because
its CPU backend leaves a tied output head stale on a weight update.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

EOS = 258
PAD = 259
_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>")
_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|endoftext|>{% endfor %}"


def write_tiny_model(path: Path, *, seed: int) -> None:
    """Write tokenizer, configuration and random weights in Hugging Face layout."""
    path.mkdir(parents=True, exist_ok=True)
    _tokenizer().save_pretrained(path)
    tiny_model(seed=seed).save_pretrained(path)


def tiny_model(*, seed: int) -> Any:
    """The model with the random weights of ``seed``, float32."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=264,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
            rms_norm_eps=1e-6,
            bos_token_id=None,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    )
    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = PAD
    return model.float()


def _tokenizer() -> Any:
    """256 byte tokens, then the special ones from id 256 on."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(name, special=True) for name in _SPECIALS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=_SPECIALS[2],
        pad_token=_SPECIALS[3],
        model_max_length=1024,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


if __name__ == "__main__":
    write_tiny_model(Path(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
