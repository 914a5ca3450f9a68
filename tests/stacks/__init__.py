"""Plans handed over to other software, validated by that software where it is installed."""
