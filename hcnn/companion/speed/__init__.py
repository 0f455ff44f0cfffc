"""Seconds and memory of training steps beside the literal implementation."""
