"""Detect-Track-Generate: from clips with a bare narration to clips with depth, masks, contacts and enriched captions."""
