"""Which split point to choose: latency, traffic, utility and leakage of each point, and a recommendation."""
