"""Which options of `execute` go together. Torch-free."""

from __future__ import annotations

# Of the user's own code, whatever is done with it.
ALWAYS = ("trust_module", "traceback")
RUN = (
    "steps", "warmup", "top", "with_baseline", "data", "seed", "oversubscribe", "runs", "checkpoint",
    "checkpoint_every", "resume", "max_restarts", "trace", "timeout", "verbose", "engine",
)  # fmt: skip
# The option that each of these says something about, and its value where that matters.
NEEDS = {
    "rank": ("rehearse", ""),
    "all_stages": ("rehearse", ""),
    "more_steps": ("compress", ""),
    "export": ("compress", ""),
    "runtimes": ("export", ""),
    "compiled": ("compress", ""),
    "gpus_per_node": ("emit", ""),
    "image": ("emit", ""),
    "sbatch": ("emit", ""),
    "install": ("emit", ""),
    "checkpoint_every": ("checkpoint", ""),
    "resume": ("checkpoint", ""),
}
# What is read where the command does something else than run the plans.
TAKES = {
    "rehearse": ("top", "rank", "all_stages", "json_output", "output", *ALWAYS),
    "compress": (
        "steps", "data", "seed", "oversubscribe", "timeout", "more_steps", "export", "runtimes", "compiled",
        "json_output", "output", *ALWAYS,
    ),
    "check": (
        "top", "with_baseline", "data", "seed", "oversubscribe", "checkpoint", "checkpoint_every", "resume", "timeout",
        "json_output", *ALWAYS,
    ),
    "train": (
        "seed", "oversubscribe", "runs", "checkpoint", "checkpoint_every", "resume", "max_restarts", "timeout",
        "verbose", "json_output", "output", *ALWAYS,
    ),
    "engine": (
        "steps", "warmup", "top", "with_baseline", "data", "seed", "oversubscribe", "runs", "max_restarts", "trace",
        "timeout", "verbose", "json_output", "output", "emit", "gpus_per_node", "image", "install", "sbatch", *ALWAYS,
    ),
    "emit": (*RUN, "gpus_per_node", "image", "install", "sbatch", "output", *ALWAYS),
    "rank": ("rehearse", "top", "json_output", "output", *ALWAYS),
}  # fmt: skip
