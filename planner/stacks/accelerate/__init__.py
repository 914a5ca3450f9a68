"""Accelerate's YAML with FSDP2, and transformers' TrainingArguments beside it."""
