"""Which sampling settings suit a checkpoint best within a given time per image."""
