"""Transcoders on disk: which dialect a folder speaks, told by its files; one module for each family of dialects.

circuit_tracer  config.yaml + layer_N.safetensors (PLT, Qwen3), or + W_enc_N and W_dec_N (CLT)
decode_clt      cfg.json + one state dict: untied decoders, or tied by source or by target
gemma           Gemma Scope 1 and 2 transcoders with affine skip, Gemma Scope 2 CLT
saelens         transcoder, skip_transcoder, jumprelu_transcoder, jumprelu_skip_transcoder
sparsify        EleutherAI sparsify and clt-training, a hookpoint or a folder of them
"""

from polysem.saes.transcoders.load import load_transcoders

__all__ = ["load_transcoders"]
