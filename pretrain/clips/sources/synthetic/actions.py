"""The table of actions: one row each, from config.ACTIONS to what casts and plans it."""

from __future__ import annotations

from pretrain.clips.sources.synthetic.fixtures import FIXTURES
from pretrain.clips.sources.synthetic.loose import LOOSE
from pretrain.clips.sources.synthetic.moves import Action

ACTION_TABLE: dict[str, Action] = LOOSE | FIXTURES
