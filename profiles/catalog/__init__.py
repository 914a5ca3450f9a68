"""What is known of devices, clusters, software and models, as files whose numbers name their sources."""

from pathlib import Path

CATALOG = Path(__file__).parent
