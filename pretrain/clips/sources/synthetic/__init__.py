"""Synthetic egocentric clips: two human-like hands act on things on a table or a counter, seen from the head.

Public names: `SyntheticConfig`, `generate_clip` and `ACTIONS`. MuJoCo is only imported when a clip is made.
"""

from pretrain.clips.sources.synthetic.config import ACTIONS, SCENES, SyntheticConfig
from pretrain.clips.sources.synthetic.generate import generate_clip

__all__ = ["ACTIONS", "SCENES", "SyntheticConfig", "generate_clip"]
