"""Benchmarks by interleaved replays of one training trajectory: against peers, and of the plug-in against itself."""
