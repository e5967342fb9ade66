"""Where clips come from: one file or package a source."""
