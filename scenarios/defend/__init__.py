"""What a defence withstands, and what it costs: ``splitsight defend``."""
