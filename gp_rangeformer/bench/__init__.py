"""Benchmarks of the plug-in against itself: interleaved replays of one training trajectory."""
