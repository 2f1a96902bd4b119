"""What the operator and the trainer agree on: names, wire messages, model presets.

The only part of this package that the trainer may import, so it uses nothing but the standard library.
"""
