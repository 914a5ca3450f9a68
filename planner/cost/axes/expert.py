"""Expert parallelism: tokens travel to the ranks that hold their experts, and back."""

from __future__ import annotations

import numpy as np

from planner.cost.axes.groups import expert_seconds, experts_inside, message_element_bytes, seconds
from planner.cost.job import Jobs, Names
from planner.cost.unit_costs import Links
from profiles.models.operators import PHASES, Phase
from profiles.models.traced_sizes import TracedSizes
from profiles.models.transformer import ROUTED, Array

# Dispatchers that send a token once to every rank that wants it, and once through the cards to every fast domain.
ONE_COPY = ("deepep", "hybrid")
GATHERS = "allgather"


def layers_seconds(jobs: Jobs, links: Links) -> dict[tuple[str, Phase], Array]:
    """Seconds of what ranks that share a layer's experts send, by kind and direction, of the kinds that have some."""
    model = jobs.model
    if isinstance(model, TracedSizes):
        kinds = model.kinds if (jobs.expert > 1).any() else ()
        return {(kind, phase): _traced_seconds(jobs, links, model, kind, phase) for kind in kinds for phase in PHASES}
    return dict.fromkeys(((ROUTED, phase) for phase in PHASES), layer_seconds(jobs, links))


def _traced_seconds(jobs: Jobs, links: Links, model: TracedSizes, kind: str, phase: Phase) -> Array:
    """Seconds of the all-to-alls of a layer of a task, each of the bytes that a rank was seen to send."""
    total, one = np.zeros(len(jobs)), np.ones(len(jobs))
    for degree, layer in model.shared(kind).items():
        own = jobs.expert == degree
        for message in layer.messages if own.any() else ():
            if message.phase == phase:
                sent = np.where(own, model.at(message.num_bytes, jobs.micro_batch, one), 0.0)
                total = total + np.where(own, expert_seconds(jobs, links, "all_to_all", sent, jobs.expert), 0.0)
    return total


def layer_seconds(jobs: Jobs, links: Links) -> Array:
    """Seconds of dispatching and combining in one layer, in one direction.

    Model: two all-to-alls of a copy of each token per expert it goes to, under balanced routing, or of one per rank
    that it goes to; or all tokens are gathered before and summed after. With expert tensor
    parallelism what ranks have then is gathered before and summed after as well.
    """
    own = jobs.tokens / jobs.tensor * jobs.model.hidden_size * message_element_bytes(jobs)
    chosen, used = np.maximum(jobs.model.experts_per_token, 0.0), dispatchers(jobs)
    travelled, received = 2 * expert_seconds(jobs, links, "all_to_all", own * chosen, jobs.expert), chosen
    if np.isin(used, ONE_COPY).any():
        is_one = np.isin(used, ONE_COPY)
        travelled = np.where(is_one, 2 * _one_copy_seconds(jobs, links, own), travelled)
        received = np.where(is_one, expected_copies(jobs.expert, chosen), received)
    if (used == GATHERS).any():
        whole = own * jobs.expert
        gathered = expert_seconds(jobs, links, "all_gather", whole, jobs.expert)
        gathered = gathered + expert_seconds(jobs, links, "reduce_scatter", whole, jobs.expert)
        travelled = np.where(used == GATHERS, gathered, travelled)
        received = np.where(used == GATHERS, jobs.expert, received)
    one, whole = np.ones(len(jobs)), own * received * jobs.expert_tensor
    split = seconds(jobs, links, "all_gather", whole, jobs.expert_tensor, one) + seconds(
        jobs, links, "reduce_scatter", whole, jobs.expert_tensor, one
    )
    return np.where(jobs.model.is_moe, travelled + split, 0.0)


def dispatchers(jobs: Jobs) -> Names:
    """What sends each job's tokens to experts: as it says, or as its stack does. Shapes: one entry per job."""
    return np.where(jobs.dispatcher == "", jobs.stack.words(lambda stack: stack.habits.dispatcher), jobs.dispatcher)


def expected_copies(places: Array, chosen: Array) -> Array:
    """On how many of so many equal places the `chosen` experts of a token lie. Shapes: broadcast.

    Model: each expert is on any of them alike, whatever the others.
    """
    return np.asarray(places * (1 - (1 - 1 / np.maximum(places, 1.0)) ** chosen))


def _one_copy_seconds(jobs: Jobs, links: Links, own: Array) -> Array:
    """Seconds of sending `own` bytes of tokens once to every rank that wants them.

    Model: a card sends a token once to each domain, to a rank that wants it; fast links pass it on to the others there,
    and to those of its own domain. Both at once.
    Source: DeepSeek's DeepEP, whose kernels pass tokens from cards on to fast links.
    """
    chosen, ranks = np.maximum(jobs.model.experts_per_token, 0.0), jobs.expert
    near = np.minimum(experts_inside(jobs, ranks), ranks)
    domains = np.ceil(ranks / near)
    of_ranks, of_domains = expected_copies(ranks, chosen), expected_copies(domains, chosen)
    through_cards = expert_seconds(jobs, links, "all_to_all", own * of_domains, ranks)
    passed_on = of_ranks * (near - 1) / ranks + (of_ranks - of_domains) * (domains - 1) / domains
    # An all-to-all within a domain leaves a share of what it is given where it is.
    given = own * passed_on * near / np.maximum(near - 1, 1.0)
    within = expert_seconds(jobs, links, "all_to_all", given, near)
    return np.asarray(np.maximum(through_cards, within))
