"""What every role of the testbed shares: targets, splitting, wire, defences, metrics, video, artifacts."""
