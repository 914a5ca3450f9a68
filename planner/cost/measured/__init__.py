"""Who knows a machine that was measured, and how that reaches further; and layers of a traced model on any hardware."""
