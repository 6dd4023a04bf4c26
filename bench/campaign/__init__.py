"""Simulated annotation campaigns: ground truth answers, and everything else is the code that serves."""
