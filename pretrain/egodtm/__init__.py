"""EgoDTM: a video-text dual encoder with a 3D-aware depth decoder (arXiv 2503.15470)."""
