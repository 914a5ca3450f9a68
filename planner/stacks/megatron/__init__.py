"""Megatron-LM and Megatron-Core: plans in its arguments, and its scripts, YAML files and logs read back. Torch-free."""
