"""Who knows a machine that was measured: its kernels, layers, links and exchanges, and how they reach further."""
