"""Rows of a table of runs, as tests change them: every column that a prediction would else assume."""

# A small Llama of eight layers on a node of H100.
SMALL_LLAMA = {
    "arch": "llama", "num_layers": "8", "hidden_size": "4096", "ffn_size": "14336", "num_heads": "32",
    "num_kv_heads": "8", "attention": "gqa", "vocab_size": "32000", "seq_len": "4096", "mlp_type": "swiglu",
    "gpu_type": "H100-SXM5-80GB", "num_gpus": "8", "tp": "1", "pp": "1", "micro_batch_size": "1",
    "global_batch_size": "32", "precision_class": "bf16", "stack": "fsdp2", "attention_kernel": "flash2",
}  # fmt: skip
