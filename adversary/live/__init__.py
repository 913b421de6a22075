"""The adversary while the stream runs: windows of frames, deadlines, tiers."""
