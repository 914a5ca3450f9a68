"""What we run: a plan on torch.distributed, and what was measured."""
