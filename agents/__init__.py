"""One agent per source topic: which topic, which table. Nothing else."""
