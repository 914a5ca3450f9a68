"""Launch scripts of Megatron: what they start, on how many devices, with which arguments. Nothing is executed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from planner.stacks.handover import Given, StackJob
from planner.stacks.megatron.read_job import read_job
from planner.stacks.megatron.shell import Script, read_script
from planner.stacks.megatron.shell_values import Text
from planner.stacks.megatron.told import of_words
from planner.stacks.megatron.words import SAME, WORDS
from profiles.errors import InputError

LONGEST = 300_000
# What trains the models that are priced.
PROGRAM = "pretrain_gpt.py"
# In names of programs that answer with a model and train none.
ANSWERING = ("inference", "generation", "generate")
# Two of these are no chance.
MARKS = re.compile(r"--(?:tensor-model-parallel-size|pipeline-model-parallel-size|micro-batch-size|num-attention-heads"
                   r"|hidden-size|num-layers)\b")  # fmt: skip
WHOLE = re.compile(r"[0-9]{1,7}")
HEADER = re.compile(r"^#SBATCH\s+(.*)$", re.MULTILINE)
NODES = ("nnodes", "nodes", "num-nodes", "N")
PER_NODE = ("nproc-per-node", "gpus-per-node", "ntasks-per-node", "num-gpus")
ALL_RANKS = ("ntasks", "np", "n")


def is_script(path: Path, text: str) -> bool:
    """Whether a file may be a launch script."""
    if path.suffix.lower() in (".yaml", ".yml", ".json", ".toml", ".py", ".md"):
        return False
    return len(set(MARKS.findall(text[:LONGEST]))) > 1


def read_scripts(path: Path, text: str, given: Given) -> StackJob:
    """The job that a script launches.

    Raises: InputError where it launches none that is known, or contradicts itself.
    """
    where = str(path)
    if len(text) > LONGEST:
        raise InputError(f"{where}: {len(text)} characters are too long for a launch script")
    header = _header(text)
    script = read_script(where, text, _set_by_slurm(header))
    command = _launch(where, script)
    programs = [place + 1 for place in range(len(command)) if _is_program(command, place)]
    first = next((place for place, word in enumerate(command) if _is_known(word.text)), 0)
    start = next((place for place in programs if place <= first), first)
    words = [(word.text, f"line {word.line}", word.is_open) for word in command[start:]]
    said, lost = of_words(words)
    devices, whence = _devices(script, command[:start], header)
    job = read_job(where, said, given, devices=devices, whence=whence, unread=(*script.skipped, *lost))
    program = command[start - 1].text.rpartition("/")[2] if start in programs else PROGRAM
    if program != PROGRAM:
        answers = any(sign in program for sign in ANSWERING)
        how = "trains nothing: priced is a training of its model" if answers else "its language model alone"
        assumed = f"line {command[start - 1].line}: {program}: {how}, as {PROGRAM} trains it"
        job = replace(job, assumed=(*job.assumed, assumed))
    return job


def _is_program(command: Sequence[Text], place: int) -> bool:
    """Whether a word names what ranks run: a file, or a module behind -m that starts no ranks itself."""
    text = command[place].text
    is_module = place > 0 and command[place - 1].text == "-m" and not text.startswith("torch.")
    return text.endswith(".py") or is_module


def _launch(where: str, script: Script) -> list[Text]:
    """The command with most of Megatron's arguments; the variable, where no command that surely runs has any."""
    values = script.values.known.values()
    held = [value if isinstance(value, list) else [value] for value in values]
    for candidates in (script.commands, held):
        those = [_unquoted(command) for command in candidates]
        best = max(those, key=lambda words: sum(_is_known(word.text) for word in words), default=[])
        if sum(_is_known(word.text) for word in best) > 1:
            return best
    skipped = f"; skipped: {script.skipped[0]}" if script.skipped else ""
    raise InputError(f"{where}: no Megatron arguments found by reading it without executing it{skipped}")


def _is_known(text: str) -> bool:
    name = text.removeprefix("--").partition("=")[0]
    return text.startswith("--") and (name in WORDS or name in SAME)


def _unquoted(command: Sequence[Text]) -> list[Text]:
    """The words, those within a word that is a command itself, as of bash -c, taken apart."""
    words: list[Text] = []
    for word in command:
        if " " in word.text.strip() and "--" in word.text and word.text.count("--") > 1:
            for piece in word.split():
                try:
                    plain = "".join(shlex.split(piece.text)) if not piece.is_open else piece.text
                except ValueError:
                    plain = piece.text
                if plain not in ("", "\\"):
                    words.append(Text(plain, piece.lines or (word.line,), piece.is_open))
        else:
            words.append(word)
    return words


def _header(text: str) -> dict[str, str]:
    """What a job file asks Slurm for, by name."""
    words = [word for line in HEADER.findall(text) for word in line.partition("#")[0].split()]
    return _options(words)


def _options(words: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for place, word in enumerate(words):
        if not word.startswith("-"):
            continue
        name, equals, value = word.lstrip("-").replace("_", "-").partition("=")
        if not equals and place + 1 < len(words):
            value = words[place + 1]
        found.setdefault(name, value)
    return found


def _set_by_slurm(header: dict[str, str]) -> dict[str, str]:
    nodes, per_node = _number(header, NODES), _gpus(header) or _number(header, PER_NODE)
    own: dict[str, str] = {}
    if nodes:
        own |= {"SLURM_NNODES": str(nodes), "SLURM_JOB_NUM_NODES": str(nodes)}
    if per_node:
        own |= {"SLURM_GPUS_ON_NODE": str(per_node), "SLURM_GPUS_PER_NODE": str(per_node)}
    if nodes and (tasks := _number(header, ("ntasks-per-node",))):
        own |= {"SLURM_NTASKS": str(nodes * tasks), "SLURM_NTASKS_PER_NODE": str(tasks)}
    return own


def _number(options: dict[str, str], names: Sequence[str]) -> int:
    return next((int(options[name]) for name in names if WHOLE.fullmatch(options.get(name, ""))), 0)


def _gpus(options: dict[str, str]) -> int:
    """GPUs of a node, as --gres=gpu:8 or --gpus-per-node=h100:8 say."""
    for name in ("gres", "gpus-per-node"):
        found = re.search(r"(?:^|:)(\d{1,5})$", options.get(name, "").split("(")[0])
        if found:
            return int(found.group(1))
    return 0


def _devices(script: Script, launcher: Sequence[Text], header: dict[str, str]) -> tuple[int, str]:
    """How many devices it is started on, and what says so; 0 where nothing does."""
    own = _options([word.text for word in launcher if not word.is_open])
    per_node = _number(own, PER_NODE)
    nodes = _number(own, NODES) or _number(header, NODES)
    line = launcher[0].line if launcher else 0
    if per_node:
        return per_node * (nodes or 1), f"as line {line} starts them, {nodes or 1} x {per_node}"
    ranks = _number(own, ALL_RANKS)
    if ranks:
        return ranks, f"as line {line} starts them"
    gpus = _gpus(header) or _number(header, PER_NODE)
    if gpus:
        return gpus * (nodes or 1), f"as its #SBATCH lines ask for, {nodes or 1} x {gpus}"
    world = script.values.known.get("WORLD_SIZE")
    if isinstance(world, Text) and WHOLE.fullmatch(world.text):
        return int(world.text), f"WORLD_SIZE in line {world.line}"
    return 0, ""
