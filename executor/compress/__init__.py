"""Models made smaller or faster: what is removed, rounded or taught, on real ranks, and what came of it."""
