"""Pages that work offline: what those of all commands share, and pages of tables alone."""
