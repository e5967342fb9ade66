"""Encoders that were not trained here: timm's image models, raw pixels, and importers of outside checkpoints."""
